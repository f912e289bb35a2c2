"""A report names the general ability that was measured, and speaks of the gain alone where none was."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from lsemrl.cli.main import main
from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import Measured
from lsemrl.report import page, plots
from lsemrl.report.columns import LOSSES, MOVED, SUMMARY, TERMINAL, grid
from lsemrl.report.findings import comparisons, finding, notes, unmeasured
from lsemrl.report.published import beside
from lsemrl.report.records import Report
from lsemrl.report.tax_report import tax_report
from made_up import make_measured
from matrix import slow_but

ARMS = ("base", "cold_start", "rl", "sft")


def report_of(*arms: Measured, paths: tuple[tuple[str, ...], ...] = ()) -> Report:
    return tax_report([(Path(f"{one.arm}/{one.seed}"), one) for one in arms], command="", paths=paths)


def gain_only(measured: Measured, *left_out: str) -> Measured:
    """As `lsemrl measure` writes it with general: null, and with what else is left out."""
    out = ("general", *left_out)
    return dataclasses.replace(
        measured,
        data={part: rows for part, rows in measured.data.items() if part not in out},
        divergence={part: each for part, each in measured.divergence.items() if part not in out},
        general={},
        general_rows={},
        general_name="",
        answers=(),
    )


def scored(measured: Measured, name: str, **rows: tuple[float, ...]) -> Measured:
    """Measured by something else than reading comprehension, of the same difficulty."""
    rows = {**rows, "nll": measured.general_rows["nll"]}
    return dataclasses.replace(
        measured, general={score: float(np.mean(each)) for score, each in rows.items()}, general_rows=rows,
        general_name=name,
    )  # fmt: skip


def choosing(measured: Measured) -> Measured:
    right = measured.general_rows["em"]
    return scored(measured, "multiple choice", accuracy=right, accuracy_per_token=right, chance=(0.25,) * len(right))


def instructed(measured: Measured) -> Measured:
    near = tuple(0.2 + 0.6 * right for right in measured.general_rows["em"])
    return scored(measured, "instructions", chrf_sentence=near, answer_length=measured.general_rows["answer_length"])


def in_english(measured: Measured) -> Measured:
    return dataclasses.replace(measured, general_name="English QA")


def pages(report: Report) -> tuple[str, str]:
    text = page.html(report, {name: "" for name in plots.draw(report)})
    return page.markdown(report, list(plots.draw(report))), re.sub(r"(?s)<style>.*</style>", "", text)


@pytest.mark.parametrize("left_out", slow_but([(), ("text",)], [()]))
@pytest.mark.parametrize("seeds", slow_but([(1,), (1, 2)], [(1, 2)]))
def test_without_general_ability_the_report_is_of_the_gain(left_out: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    arms = [
        gain_only(make_measured(arm, seed), *left_out) for arm in ARMS for seed in (seeds if arm != "base" else (1,))
    ]
    report = report_of(*arms)
    assert re.fullmatch(
        r"RL gained [\d.]+ points of meaning F1 over the cold start; Strong SFT gained [\d.]+", finding(report)
    )
    assert [line.partition(":")[0] for line in comparisons(report)] == [
        "RL against Cold start", "Strong SFT against RL",
    ]  # fmt: skip
    assert set(plots.draw(report)) == {"hacking"}
    for columns in (SUMMARY, TERMINAL, LOSSES, MOVED):
        heads = [column.head for column in grid(report, columns)[0]]
        assert not any(re.search("lost|exact|drift|NLL|QA", head) for head in heads)
        assert not left_out or not any("Chinese" in head for head in heads)
    for text in pages(report):
        told = text.replace("nothing can be said of what was lost", "")
        assert not re.search(r"\bnan\b|lost|QA|exact match|Gain against tax|not measured for", told)
        assert "General ability was not measured" in text and "What each arm learned" in text


def test_ways_of_training_are_not_compared_by_a_loss_nobody_measured() -> None:
    with pytest.raises(UserError, match="--path compares what ways of training lost, and no general ability"):
        report_of(*(gain_only(make_measured(arm)) for arm in ARMS), paths=(("rl",), ("sft",)))


def test_an_arm_without_general_ability_is_not_held_against_a_base_with_it() -> None:
    with pytest.raises(UserError, match=r"measured on other general rows \(0, not 120\)"):
        report_of(make_measured("base"), gain_only(make_measured("rl")))
    with pytest.raises(UserError, match=r"measured on other general rows \(120, not 0\)"):
        report_of(gain_only(make_measured("base")), make_measured("rl"))


@pytest.mark.parametrize(
    ("change", "name", "lost", "head"),
    [
        pytest.param(
            choosing, "multiple choice", "multiple choice accuracy lost", "accuracy lost", marks=pytest.mark.slow
        ),
        pytest.param(instructed, "instructions", "instructions chrF lost", "chrF lost", marks=pytest.mark.slow),
        (in_english, "English QA", "English QA exact match lost", "EM lost"),
    ],
    ids=("choice", "instructions", "english"),
)  # fmt: skip
def test_every_sentence_table_and_plot_names_what_was_measured(
    change: object, name: str, lost: str, head: str, tmp_path: Path
) -> None:
    arms = [change(make_measured(arm, seed)) for arm in ARMS for seed in ((1, 2) if arm != "base" else (1,))]  # type: ignore[operator]
    report = report_of(*arms, paths=(("cold_start", "rl"), ("cold_start", "sft")))
    assert report.general_name == name
    assert f"points of {name} against the base" in finding(report)
    assert any(f"of {name} it lost" in line for line in comparisons(report))
    assert any("has lost" in line and f"points of {name} and" in line for line in comparisons(report))
    figures = plots.draw(report)
    assert figures["gain_tax"].axes[0].get_xlabel().startswith(f"{lost} against the base")
    assert figures["kl_tax"].axes[0].get_ylabel() == f"{lost}, points"
    for columns in (SUMMARY, TERMINAL, LOSSES):
        assert head in [column.head for column in grid(report, columns)[0]]
    assert name in [column.group for column in grid(report, LOSSES)[0]]
    for text in pages(report):
        assert "Chinese QA" not in text and "Chinese question" not in text and "Chinese reading" not in text
        assert f"{report.general_short} " in text and "nan" not in text
    report.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json") == report
    kept = report.contrast("sft", "base", f"tax.{report.kept}")
    assert kept is not None and kept.low > 0


def test_a_base_that_guesses_has_nothing_to_lose() -> None:
    def at(measured: Measured, right: int) -> Measured:
        em = (1.0,) * right + (0.0,) * (120 - right)
        return choosing(dataclasses.replace(measured, general_rows=measured.general_rows | {"em": em}))

    said = unmeasured(report_of(at(make_measured("base"), 38), at(make_measured("rl"), 25)))
    assert said == (
        "what was lost of multiple choice cannot be measured: the base answers only 38 of 120, where guessing gives 30"
    )
    assert unmeasured(report_of(at(make_measured("base"), 40), at(make_measured("rl"), 25))) == ""


def test_published_figures_of_cmrc_stand_beside_no_other_ability() -> None:
    arms = [make_measured(arm) for arm in ARMS]
    assert "Drift on CMRC against the base" in [title for title, *_ in beside(report_of(*arms))]
    for others in (
        [choosing(one) for one in arms],
        [gain_only(one) for one in arms],
        [dataclasses.replace(one, signatures=one.signatures | {"squad": "SQuAD v1.1"}) for one in arms],
    ):
        tables = beside(report_of(*others))
        assert [title for title, *_ in tables] == ["Translation"]
        assert not any("CMRC" in column.group for _, columns, _ in tables for column in columns)


@pytest.mark.usefixtures("no_plots")
def test_files_of_the_first_version_are_of_chinese_questions(tmp_path: Path) -> None:
    for arm in ARMS:
        (tmp_path / arm).mkdir()
        path = make_measured(arm).write(tmp_path / arm)
        old = json.loads(path.read_text(encoding="utf-8")) | {"version": 1}
        del old["general_name"], old["text_name"]
        path.write_text(json.dumps(old), encoding="utf-8")
    main(["tax", str(tmp_path), "--output", str(tmp_path / "tax")])
    path = tmp_path / "tax" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["version"] == 2 and report["general_name"] == "Chinese QA"
    del report["general_name"], report["text_name"]
    path.write_text(json.dumps(report | {"version": 1}), encoding="utf-8")
    assert "of Chinese QA against the base" in finding(Report.from_json(path))


def test_a_score_that_only_new_measurements_have_is_left_out_beside_old_ones() -> None:
    rl = make_measured("rl")
    new = dataclasses.replace(
        rl, general=rl.general | {"contained": 0.9}, general_rows=rl.general_rows | {"contained": (0.9,) * 120}
    )
    report = report_of(make_measured("base"), new, make_measured("rl", 2))
    assert report.contrast("rl", "base", "general.contained") is None
    both = report_of(dataclasses.replace(new, arm="base", label="Base"), new)
    assert "contained" in [column.head for column in grid(both, LOSSES)[0]]
    assert any(note.startswith("Contained:") for note in notes(both))
    assert not any(note.startswith("Contained:") for note in notes(report_of(make_measured("base"), rl)))
