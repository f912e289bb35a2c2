"""The report: what its tables, pages and plots hold."""

from __future__ import annotations

import html
import io
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from rich.console import Console

from lsemrl.errors import UserError
from lsemrl.micro import grammar
from lsemrl.micro.oracle import meaning
from lsemrl.report import columns, findings, page, plots
from lsemrl.report.colours import COLOURS
from lsemrl.report.contrasts import HarnessScore
from lsemrl.report.records import Alarm, Arm, Report, Sample
from lsemrl.report.write import table, write_report

HOSTILE = '<script>alert("x")</script> | **bold** & ༄'

# name -> label, how trained, meaning F1, wholly right, exact match, KL, mean drift
ARMS = {
    "base": ("Base", "As shipped, never trained on Tibetan pairs.", 0.031, 0.0, 0.838, 0.0, 0.0),
    "cold_start": ("Cold start", "SFT on 1,000 pairs, 3 epochs.", 0.566, 0.112, 0.818, 0.41, 0.05),
    "rl": ("RL", "GRPO from the cold start, similarity and language rewards.", 0.687, 0.274, 0.806, 0.58, 0.09),
    "sft": ("Strong SFT", "SFT from the cold start on all 20,000 pairs.", 0.769, 0.402, 0.72, 2.31, 0.71),
    "sft_replay": ("SFT with replay", "Strong SFT with 30% Chinese QA mixed in.", 0.748, 0.366, 0.796, 1.02, 0.12),
}


def make_arm(name: str, questions: int = 400, sources: int = 6) -> Arm:
    """One arm with figures of a plausible size, its outputs real Tibetan of the embedded world."""
    label, trained_by, f1, exact, em, kl, drift = ARMS[name]
    rng, trained = random.Random(name), name != "base"
    start = ARMS["base"] if name in ("base", "cold_start") else ARMS["cold_start"]
    steps = {"base": 0, "cold_start": 190}.get(name, 250)
    trajectory = []
    for at in range(9):
        way = 1 - (1 - at / 8) ** 2
        trajectory.append(
            {
                "step": at * steps / 8,
                "meaning_f1": start[2] + way * (f1 - start[2]),
                "meaning_exact": start[3] + way * (exact - start[3]),
                "em": start[4] + at / 8 * (em - start[4]) + rng.gauss(0, 0.004) * (0 < at < 8),
            }
        )
    return Arm(
        name=name,
        label=label,
        trained_by=trained_by,
        seconds=1.1 * steps,
        steps=steps,
        target={
            "meaning_f1": f1, "meaning_exact": exact, "chrf": 0.08 + 0.8 * f1, "bleu": 0.6 * f1**2, "rouge_l": 0.9 * f1,
            "similarity": 0.2 + 0.7 * f1, "language_rate": 0.997 if trained else 0.012, "ended_rate": 0.999,
        },
        general={
            "em": em, "f1": em + 0.03, "average": em + 0.015, "answer_length": 2.31 - drift / 5, "nll": 0.21 + drift,
        },
        nll_drifts=tuple(rng.gauss(0, 0.06) + rng.expovariate(1 / drift) for _ in range(questions)) if trained else (),
        kl={"target": kl, "general": kl / 9, "text": kl / 14} if trained else {},
        samples=tuple(make_sample(name, at, f1) for at in range(sources)),
        curve=tuple(make_curve(rng)) if name == "rl" else (),
        trajectory=tuple(trajectory) if trained else (),
    )  # fmt: skip


def make_sample(name: str, at: int, quality: float) -> Sample:
    rng = random.Random(at)
    event = grammar.draw_event(rng, "test")
    source, reference = grammar.chinese(event, rng), grammar.tibetan(event, rng)
    rng = random.Random(f"{name}{at}")
    while rng.random() > quality and rng.random() < 0.8:
        event = grammar.corrupt(event, rng)
    output = grammar.tibetan(event, rng) if name != "base" else source if at else ""
    score = meaning(output, reference).f1
    return Sample(source=source, reference=reference, output=output, rewards={"similarity": score, "language": 1.0})


def make_curve(rng: random.Random, steps: int = 120) -> list[dict[str, float]]:
    points = []
    for step in range(1, steps + 1):
        way = 1 - math.exp(-step / 45)
        similarity, oracle = 0.52 + 0.2 * way + rng.gauss(0, 0.03), 0.55 + 0.13 * way + rng.gauss(0, 0.03)
        points.append(
            {
                "rollout_step": step, "reward": 1.5 * similarity + 0.98, "similarity": similarity,
                "language": min(1.0, 0.985 + rng.gauss(0, 0.008)), "meaning_f1": oracle,
                "kl": 0.11 * way + abs(rng.gauss(0, 0.005)), "length": 17 - way + rng.gauss(0, 0.3),
            }
        )  # fmt: skip
    return points


def make_report(*names: str) -> Report:
    return Report(
        lsemrl="0.1.0",
        created="2026-11-23T06:10:00+00:00",
        task="translation zh→bo",
        seed=1,
        command="lsemrl experiment --config configs/experiment/demo.yaml --seed_everything 1",
        machine={"processor": "x86_64", "cores": 2, "memory, GB": 7.8},
        versions={"torch": "2.13.0", "transformers": "5.1.0", "sacrebleu": "2.5.1"},
        signatures={
            "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.5.1",
            "bleu": "nrefs:1|case:mixed|eff:no|tok:syllable|smooth:exp|version:2.5.1",
        },
        seconds=523.4,
        arms=tuple(map(make_arm, names or ARMS)),
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report, tmp_path_factory.mktemp("run") / "report").parent


def cells_of(report: Report, heading: str) -> dict[str, columns.Cell]:
    """One column of the tables, by arm."""
    for table_columns in (columns.LEARNED, columns.LOSSES):
        shown, rows = columns.grid(report, table_columns)
        for at, column in enumerate(shown):
            if column.head == heading:
                return {arm.name: cells[at] for arm, cells in rows}
    raise AssertionError(f"no column {heading!r}")


def test_cells_show_value_difference_and_best_of_the_trained(report: Report) -> None:
    assert cells_of(report, "meaning F1") == {
        "base": columns.Cell(text="3.1"),
        "cold_start": columns.Cell(text="56.6", delta="+53.5"),
        "rl": columns.Cell(text="68.7", delta="+65.6"),
        "sft": columns.Cell(text="76.9", delta="+73.8", best=True),
        "sft_replay": columns.Cell(text="74.8", delta="+71.7"),
    }
    lost = cells_of(report, "EM lost")
    assert [cell.text for cell in lost.values()] == [findings.MISSING, "2.0", "3.2", "11.8", "4.2"]
    assert [name for name, cell in lost.items() if cell.best] == ["cold_start"]
    # The base answers best, and is not in the running.
    assert [name for name, cell in cells_of(report, "exact match").items() if cell.best] == ["cold_start"]
    assert not any(cell.best for cell in cells_of(report, "steps").values())


def test_drift_columns_summarise_the_questions(report: Report) -> None:
    arms = (report.base, replace(make_arm("rl"), nll_drifts=(0.0, 1.0, 2.0, 3.0, 14.0)))
    drifts = replace(report, arms=arms)
    assert cells_of(drifts, "NLL drift")["rl"].text == "4.000"
    assert cells_of(drifts, "drift P50")["rl"].text == "2.000"
    assert cells_of(drifts, "drift P90")["rl"].text == "9.600"  # linear between the fourth and the fifth of five
    gains = replace(report, arms=(report.base, replace(arms[1], nll_drifts=(-14.0, -3.0, -2.0, -1.0, 0.0))))
    assert cells_of(gains, "drift P50")["rl"].text == "\N{MINUS SIGN}2.000"
    assert cells_of(gains, "drift P90")["rl"].text == "\N{MINUS SIGN}0.400"
    broken = replace(report, arms=(report.base, replace(arms[1], nll_drifts=(0.0, math.inf))))
    assert cells_of(broken, "NLL drift")["rl"].text == "not finite"


def test_missing_and_broken_values_are_never_numbers(report: Report) -> None:
    sft = replace(make_arm("sft"), target={"meaning_f1": math.nan, "chrf": 0.51}, general={}, trajectory=())
    partial = replace(report, arms=(*report.arms[:3], sft))
    assert cells_of(partial, "meaning F1")["sft"] == columns.Cell(text="not finite")
    assert cells_of(partial, "wholly right")["sft"].text == findings.MISSING
    assert cells_of(partial, "EM lost")["sft"].text == findings.MISSING
    assert "Strong SFT" not in findings.finding(partial)
    text = page.html(partial, {})
    assert "not finite" in text and ">nan<" not in text
    assert "cannot be compared at the same meaning F1" in text


def test_a_report_of_the_base_alone_can_be_written(tmp_path: Path) -> None:
    text = write_report(make_report("base"), tmp_path).read_text(encoding="utf-8")
    assert "Gain against tax was not measured" in text
    assert not list(tmp_path.glob("*.png"))


def test_json_round_trip_keeps_everything(report: Report, folder: Path) -> None:
    assert Report.from_json(folder / "report.json") == report


def test_json_has_no_bare_nan_and_reads_it_back(report: Report, tmp_path: Path) -> None:
    rl = replace(make_arm("rl"), kl={"target": math.inf, "text": math.nan}, nll_drifts=(-math.inf, 0.5))
    path = tmp_path / "report.json"
    replace(report, arms=(report.base, rl)).to_json(path)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = Report.from_json(path).arms[1]
    assert again.kl["target"] == math.inf and math.isnan(again.kl["text"]) and again.nll_drifts == (-math.inf, 0.5)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"version": 99}, "version 99"),
        ({"arms": [{}]}, "target"),
        ({"colour": "red"}, "colour"),
        ({"arms": []}, "base"),
        ({"version": 1e400}, "infinity"),
        ({"created": 5}, "created is '5'"),
        ({"machine": ["x"]}, "machine is"),
        ({"signatures": {"chrf": 1}}, "signatures.chrf is"),
        ({"seed": "first"}, "seed is 'first'"),
        ({"setup": None}, "setup is 'None'"),
        ({"paths": [[1]]}, "paths is"),
    ],
)
def test_foreign_json_is_refused_in_one_sentence(
    folder: Path, tmp_path: Path, change: dict[str, object], names: str
) -> None:
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(json.loads((folder / "report.json").read_text(encoding="utf-8")) | change))
    with pytest.raises(UserError, match=names) as error:
        Report.from_json(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", None])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"some\.json cannot be read"):
        Report.from_json(path)


def test_units_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"general\.em .* is a fraction, at most 1, got 83\.8"):
        replace(make_arm("rl"), general={"em": 83.8})
    with pytest.raises(ValueError, match="no metric 'blue'"):
        replace(make_arm("rl"), target={"blue": 0.5})
    with pytest.raises(ValueError, match="identifier"):
        replace(make_arm("rl"), name="../rl")
    with pytest.raises(ValueError, match="distinct names"):
        make_report("base", "rl", "rl")


def test_folder_that_cannot_be_written_is_a_users_mistake(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/report. cannot be written"):
        write_report(report, tmp_path / "file" / "report")


def test_markdown_holds_every_arms_numbers(report: Report, folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    lost, moved = (
        {line.split("|")[1].strip(): line for line in section.splitlines() if "|" in line}
        for section in (
            text.split("## What each arm lost")[1].split("## ")[0],
            text.split("## How far each arm moved")[1].split("## ")[0],
        )
    )
    for arm in report.arms:
        for value in (arm.general["em"], arm.general["f1"], arm.general["average"]):
            assert f"{100 * value:.1f}" in lost[arm.label]
        for value in arm.kl.values():
            assert f"{value:.3f}" in moved[arm.label]
        learned = next(
            line for line in text.split("## What each arm learned")[1].splitlines() if f"| {arm.label} |" in line
        )
        for key, value in arm.target.items():
            shown = f"{value:.3f}" if key == "similarity" else f"{100 * value:.1f}"
            assert shown in learned, key
        assert arm.trained_by in text
    assert report.command in text and f"seed {report.seed}" in text and report.signatures["bleu"] in text
    for name in re.findall(r"\]\((.+?)\)", text):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_page_needs_nothing_but_itself(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"'\s>)]*)""", text)
    assert len(addresses) == 3 and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert not re.search(r"<script|<link|@import|https?:", text)


def test_page_shows_every_arm_and_how_to_repeat_it(report: Report, folder: Path) -> None:
    text = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert f"<h1>{findings.finding(report)}.</h1>" in text
    assert all(sentence in text for sentence in findings.comparisons(report))
    assert report.command in text and all(signature in text for signature in report.signatures.values())
    for arm in report.arms:
        assert arm.label in text and arm.trained_by in text and COLOURS[arm.name] in text
        for sample in arm.samples:
            assert f">{sample.source}</span>" in text and sample.output in text
    assert f'<span lang="bo">{report.arms[2].samples[0].output}</span>' in text
    assert f'<span lang="zh">{report.arms[2].samples[0].source}</span>' in text
    assert "(empty)" in text


def test_an_output_without_rewards_stands_alone(report: Report) -> None:
    sample = Sample(source="source", reference="reference", output="output", rewards={})
    alone = replace(report, arms=(report.base, replace(make_arm("rl"), samples=(sample,))))
    assert "| output |" in page.markdown(alone, [])


def test_text_of_models_is_never_markup(report: Report) -> None:
    sample = Sample(source=HOSTILE * 5, reference=HOSTILE, output=f"{HOSTILE}\nsecond line", rewards={"<b>": math.nan})
    rl = replace(make_arm("rl"), label=HOSTILE, trained_by=HOSTILE, samples=(sample,))
    hostile = replace(report, arms=(report.base, rl), command=HOSTILE, task=HOSTILE, machine={HOSTILE: HOSTILE})
    text = page.html(hostile, {})
    assert "<script" not in text and "<b>" not in text
    assert text.count("&lt;script&gt;") > 10
    lines = page.markdown(hostile, []).splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("| source"))
    row = next(line for line in lines[at:] if "second line" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", lines[at + 1]))
    assert r"\<script\>" in row and r"\*\*bold" in row


OBEYED = "\x1b]0;t\x07\x9b2J\u202eabc\u2066 ![x](http://a.b/c) $\\frac{"


def test_what_a_terminal_or_a_viewer_would_obey_reaches_no_page(report: Report, tmp_path: Path) -> None:
    sample = Sample(source=OBEYED, reference=OBEYED, output=OBEYED, rewards={OBEYED: 1.0})
    scores = {OBEYED: HarnessScore(before=0.1, after=0.2, low=0.0, high=0.1)}
    arms = (replace(report.base, label=OBEYED), replace(report.arms[2], label=OBEYED, trained_by=OBEYED))
    arms = tuple(replace(arm, samples=(sample,), harness=scores) for arm in arms)
    fields = dict.fromkeys(("lsemrl", "created", "task", "command"), OBEYED)
    maps = {key: {OBEYED: OBEYED} for key in ("machine", "versions", "signatures", "setup")}
    hostile = replace(report, arms=arms, **fields, **maps)  # type: ignore[arg-type]
    write_report(hostile, tmp_path)
    pages = [(tmp_path / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")]
    console = Console(file=io.StringIO(), width=200)
    console.print(table(hostile))
    for text in (*pages, console.file.getvalue()):  # type: ignore[attr-defined]
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert r"\x1b" in text
    prose = re.sub(r"(`+).*?\1", "", re.sub(r"(?s)```.*?```", "", pages[0]))
    assert not re.search(r"(?<!\\)!\[x|http://", prose)
    assert "default-src 'none'" in pages[1]


def series(line: Line2D) -> tuple[list[float], list[float]]:
    """What a line is drawn through."""
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def test_gain_tax_plot_draws_each_arm_to_its_final_evaluation(report: Report) -> None:
    figure = plots.draw(report)["gain_tax"]
    ax = figure.axes[0]
    assert "percentage points" in ax.get_xlabel() and "meaning F1" in ax.get_ylabel()
    drawn = {line.get_color(): series(line) for line in ax.lines if len(series(line)[0]) > 2}
    for arm in report.trained:
        xs, ys = drawn[COLOURS[arm.name]]
        loss = 100 * (report.base.general["em"] - arm.general["em"])
        assert (len(xs), xs[-1], ys[-1]) == pytest.approx((9, loss, 100 * arm.target["meaning_f1"]))
    assert {arm.label for arm in report.arms} <= {note.get_text() for note in ax.texts}
    figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in ax.texts if note.get_text()]
    assert not any(box.overlaps(other) for at, box in enumerate(boxes) for other in boxes[:at])


def test_many_arms_have_room_for_their_names() -> None:
    """Where a dozen lie close together, their names had lain upon each other."""
    base, sft = make_arm("base"), replace(make_arm("sft"), trajectory=())
    close = [
        replace(
            sft,
            name=f"sft_{at}",
            label=f"SFT, anchored, {at + 1} times the rate",
            target={**sft.target, "meaning_f1": 0.93 + 0.005 * at},
            general={**sft.general, "em": base.general["em"] - 0.02 - 0.003 * (at % 4)},
        )
        for at in range(12)
    ]
    high = replace(base, target={**base.target, "meaning_f1": 0.999})  # a base that was better stays in sight
    above = plots.draw(replace(make_report(), arms=(high, sft, *close)))["gain_tax"].axes[0]
    assert above.get_ylim()[1] > 99.9 and "Base" in {note.get_text() for note in above.texts}
    low = replace(base, target={**base.target, "meaning_f1": 0.0})
    figure = plots.draw(replace(make_report(), arms=(low, sft, *close)))["gain_tax"]
    ax = figure.axes[0]
    assert 40 < ax.get_ylim()[0] < 100 * sft.target["meaning_f1"]
    assert min(ax.get_xticks()) >= 0 and max(ax.get_yticks()) <= 100
    names = [note for note in ax.texts if note.get_text()]
    assert {note.get_text() for note in names} == {"Base: 0.0, below", *(arm.label for arm in (sft, *close))}
    figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in names]
    assert all(ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max) for box in boxes)
    assert not any(box.overlaps(other) for at, box in enumerate(boxes) for other in boxes[:at])


def test_reward_plot_has_the_gap_only_with_an_oracle() -> None:
    rl = make_arm("rl")
    report = replace(make_report("base"), arms=(make_arm("base"), rl))
    axes = plots.draw(report)["reward_rl"].axes
    gap = next(ax for ax in axes if ax.get_title("left").startswith("Hacking gap"))
    assert series(gap.lines[1])[1] == pytest.approx([point["similarity"] - point["meaning_f1"] for point in rl.curve])
    blind = tuple({key: value for key, value in point.items() if key != "meaning_f1"} for point in rl.curve)
    axes = plots.draw(replace(report, arms=(report.base, replace(rl, curve=blind))))["reward_rl"].axes
    assert axes and not any("gap" in ax.get_title("left") for ax in axes)
    assert "reward_rl" not in plots.draw(replace(report, arms=(report.base, replace(rl, curve=()))))


def test_drift_histograms_share_bins_and_count_every_finite_question(report: Report) -> None:
    sft = replace(make_arm("sft"), nll_drifts=(0.0,) * 6 + (1.0, 1e6, math.inf, math.nan))
    axes = plots.draw(replace(report, arms=(report.base, make_arm("rl"), sft)))["nll_drift"].axes
    rl_stairs, sft_stairs = (ax.patches[0] for ax in axes)
    assert isinstance(rl_stairs, StepPatch) and isinstance(sft_stairs, StepPatch)
    (rl_shares, rl_edges, _), (sft_shares, sft_edges, _) = rl_stairs.get_data(), sft_stairs.get_data()
    assert np.array_equal(rl_edges, sft_edges)
    assert (rl_shares.sum(), sft_shares.sum()) == pytest.approx((100, 80))
    assert "2 not finite" in axes[1].texts[0].get_text()
    gains = replace(make_arm("rl"), nll_drifts=(-14.0, -3.0, -2.0, -1.0, 0.0))
    words = plots.draw(replace(report, arms=(report.base, gains)))["nll_drift"].axes[0].texts[0].get_text()
    assert words.replace("\N{MINUS SIGN}", "-") == "mean -4.00, P50 -2.00, P90 -0.40"


def test_terminal_table_fits_110_columns(report: Report) -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table(report))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 110 and not any("…" in line for line in lines)
    start = next(at for at, line in enumerate(lines) if line.strip().startswith("arm "))
    for arm in report.arms:
        row = next(line for line in lines[start:] if line.strip().startswith(arm.label + " "))
        assert f"{100 * arm.target['meaning_f1']:.1f}" in row and f"{100 * arm.general['em']:.1f}" in row


def test_same_report_gives_the_same_bytes() -> None:
    report = make_report("base", "sft")
    first, second = (plots.svg(plots.draw(report)["nll_drift"]) for _ in range(2))
    assert first == second


def test_what_training_said_was_wrong_is_on_the_page_with_its_rows(report: Report) -> None:
    rl = next(arm for arm in report.arms if arm.curve)
    long = {"source": "s" * 99, "reference": "r" * 99, "output": "o" * 99}
    rows = (
        Sample(source="མགོ", reference="མཇུག", output="བར<b>", rewards={"reward": 0.5}),
        Sample(**long, rewards={"reward": 0.5}),
    )
    alarmed = replace(rl, alarms=(Alarm(step=19, sentence="it copies", samples=rows),))
    report = replace(report, arms=tuple(alarmed if arm is rl else arm for arm in report.arms))
    for text in (page.markdown(report, []), page.html(report, dict.fromkeys(plots.draw(report), ""))):
        assert "larm after 20 rollout steps" in text and "it copies" in text and "མཇུག" in text and "བར<b>" not in text
        assert all(f"{each[:90]}…" in text and each not in text for each in long.values())
