"""Measurements side by side: what the report holds, and what it refuses to compare."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
import statistics
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from lsemrl.cli.main import main
from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import Measured, Rows
from lsemrl.modules.alarm_log import Told
from lsemrl.report import columns, page, plots, published
from lsemrl.report.bootstrap import paired_bootstrap
from lsemrl.report.colours import COLOURS
from lsemrl.report.contrasts import Judged
from lsemrl.report.folders import find_general, find_judgement, find_measurements
from lsemrl.report.records import Report
from lsemrl.report.tax_report import tax_report
from made_up import ARMS, make_measured

Found = list[tuple[Path, Measured]]
SEEDS = (1, 2, 3)
JUDGED = {"rl": Judged(win=0.3, rows=50, seeds=(1,), left_out=(2, 3)), "sft": Judged(win=0.6, rows=50, seeds=(1, 2))}


def found(*arms: str, seeds: tuple[int, ...] = SEEDS) -> Found:
    return [(Path(arm, str(seed)), make_measured(arm, seed)) for arm in arms or ARMS for seed in seeds]


@pytest.fixture(scope="module")
def report() -> Report:
    return tax_report(found(), command="lsemrl tax runs --output runs/tax", judged=JUDGED)


def test_numbers_are_means_over_seeds_with_their_spread(report: Report) -> None:
    assert [arm.name for arm in report.arms] == list(ARMS)
    rl = next(arm for arm in report.arms if arm.name == "rl")
    each = [make_measured("rl", seed) for seed in SEEDS]
    assert rl.seeds == SEEDS
    assert rl.target["chrf"] == pytest.approx(statistics.fmean(one.target["chrf"] for one in each))
    assert rl.target["chrf_sentence"] == pytest.approx(np.mean([one.target_rows["chrf"] for one in each]))
    assert rl.spread("general.em") == pytest.approx(statistics.stdev(one.general["em"] for one in each))
    assert rl.kl_from_base["own"] == pytest.approx(statistics.fmean(one.divergence["own"].from_base for one in each))
    assert rl.weight_change == pytest.approx(statistics.fmean(one.weight_change for one in each))
    gaps = [one.target["similarity_reward"] - one.target["meaning_f1"] for one in each]
    assert rl.target["hacking_gap"] == pytest.approx(statistics.fmean(gaps))
    assert report.base.seeds == () and report.base.spread("general.em") is None


def test_drifts_and_contrasts_are_taken_row_by_row_against_the_base(report: Report) -> None:
    rl = next(arm for arm in report.arms if arm.name == "rl")
    base = np.array(make_measured("base").general_rows["nll"])
    # Three measurements of the base, each its own here: their mean is what counts.
    base = np.mean([make_measured("base", seed).general_rows["nll"] for seed in SEEDS], axis=0)
    drifts_SN = np.array([np.array(make_measured("rl", seed).general_rows["nll"]) - base for seed in SEEDS])
    assert rl.nll_drifts == pytest.approx(tuple(drifts_SN.ravel()))
    replay = next(arm for arm in report.arms if arm.name == "sft_replay")  # some of whose drifts are gains
    each = [np.array(make_measured("sft_replay", seed).general_rows["nll"]) - base for seed in SEEDS]
    for percent in (50, 90):
        signed = statistics.stdev(float(np.percentile(drifts, percent)) for drifts in each)
        assert replay.spread(f"tax.nll_p{percent}") == pytest.approx(signed)
    assert min(map(min, each)) < -0.05
    contrast = report.contrast("rl", "base", "tax.nll")
    expected = paired_bootstrap(drifts_SN)
    assert contrast is not None
    assert (contrast.value, contrast.low, contrast.high) == pytest.approx((expected.value, expected.low, expected.high))
    lost, em = report.contrast("sft", "base", "tax.em"), report.contrast("sft", "base", "general.em")
    assert lost is not None and em is not None and lost.value == pytest.approx(-em.value) and lost.low > 0.5


def test_arms_of_one_label_are_told_apart_by_their_names() -> None:
    several = [
        (path, dataclasses.replace(one, label="SFT") if one.arm.startswith("sft") else one)
        for path, one in found("base", "rl", "sft", "sft_replay", seeds=(1, 2))
    ]
    report = tax_report(several, command="lsemrl tax")
    assert [arm.label for arm in report.arms] == ["Base", "RL", "SFT (sft)", "SFT (sft_replay)"]


def test_what_the_runs_said_was_wrong_is_told_with_their_seeds() -> None:
    row = {"source": "མགོ", "reference": "མཇུག", "completion": "བར<b>", "reward": 0.5}
    told = Told(rollout_step=19, kind="copied", sentence="it copies", rows=(row,))
    several = [
        (path, dataclasses.replace(one, alarms=(told,)) if one.arm == "rl" and one.seed == 2 else one)
        for path, one in found("base", "rl", "sft")
    ]
    for measured, when in (
        (several, "alarm after 20 rollout steps of seed 2"),
        (several[1::3], "alarm after 20 rollout steps:"),
    ):
        report = tax_report(measured, command="lsemrl tax")
        shown = page.markdown(report, []), page.html(report, dict.fromkeys(plots.draw(report), ""))
        # What is written from right to left would change places around an arrow, as it stands alone or in a line.
        assert "- མགོ, answered བར" in shown[0] and "\nbody [lang] { unicode-bidi: plaintext; }" in shown[1]
        for text in shown:
            assert text.count(when) == 1 and "it copies" in text and "མཇུག" in text and "བར<b>" not in text


def test_arms_are_held_against_cold_start_and_rl_by_shared_seeds(report: Report) -> None:
    assert {(each.of, each.against) for each in report.contrasts if each.against != "base"} == {
        ("rl", "cold_start"),
        ("sft", "cold_start"),
        ("sft", "rl"),
        ("sft_replay", "cold_start"),
        ("sft_replay", "rl"),
    }
    lone = tax_report(found("base", "rl") + found("sft", seeds=(7,)), command="")
    assert lone.contrast("sft", "rl", "tax.em") is None and lone.contrast("sft", "base", "tax.em") is not None
    chosen = tax_report(found("base", "rl", "sft", "cold_start"), command="", against=("sft",))
    assert {each.of for each in chosen.contrasts if each.against == "sft"} == {"rl", "cold_start"}
    with pytest.raises(UserError, match="--against names 'sfft', which nobody measured; choose among base, rl, sft"):
        tax_report(found("base", "rl", "sft"), command="", against=("rl", "sfft"))


def test_arms_are_held_against_each_other_by_shared_seeds_and_told_which() -> None:
    pairs = found("base", "rl", "sft") + found("cold_start", seeds=(1,)) + found("sft_replay", seeds=(7, 8))
    report = tax_report(pairs, command="", against=("cold_start", "rl"))
    gain = report.contrast("rl", "cold_start", "target.meaning_f1")
    assert gain is not None and (gain.seeds, gain.left_out) == ((1,), (2, 3))
    whole = report.contrast("sft", "rl", "target.meaning_f1")
    assert whole is not None and (whole.seeds, whole.left_out) == (SEEDS, ())
    shown = page.markdown(report, [])
    assert "Strong SFT against RL: meaning F1 is" in shown
    assert "RL against Cold start (seed 1 alone): meaning F1 is" in shown
    assert re.search(r"\| RL \|[^|]*\[[^|]*\], seed 1 alone\)", shown.split("## Arms against each other")[1])
    for other in ("Cold start", "RL"):
        assert f"SFT + replay and {other} share no seed, so that they are not held against each other." in shown
    by_default = page.markdown(tax_report(found("base", "rl") + found("cold_start", seeds=(1, 2)), command=""), [])
    assert "RL against Cold start (2 of 3 seeds): " in by_default


def test_a_single_seed_has_intervals_and_no_spread() -> None:
    single = tax_report(found("base", "rl", seeds=(1,)), command="")
    shown, rows = columns.grid(single, columns.SUMMARY)
    cell = rows[1][1][[column.head for column in shown].index("meaning F1")]
    assert cell.spread == "" and cell.interval.startswith("[")


def test_json_round_trip_keeps_everything(report: Report, tmp_path: Path) -> None:
    report.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json") == report
    measured = make_measured("rl")
    assert Measured.read(measured.write(tmp_path)) == measured


def test_what_is_said_of_an_arm_that_was_taken_out_goes_with_it(tmp_path: Path) -> None:
    tax_report(found(), command="x", paths=[["cold_start", "rl"], ["sft"]]).to_json(tmp_path / "report.json")
    whole = json.loads((tmp_path / "report.json").read_text())

    def edited(**changed: object) -> Report:
        (tmp_path / "edited.json").write_text(json.dumps({**whole, **changed}))
        return Report.from_json(tmp_path / "edited.json")

    fewer = edited(arms=[arm for arm in whole["arms"] if arm["name"] != "sft"])
    assert fewer.contrasts and not any("sft" in (each.of, each.against) for each in fewer.contrasts)
    assert fewer.paths == (("cold_start", "rl"),) and not fewer.same_scores
    assert page.markdown(fewer, figures=[]).startswith("# RL gained")
    assert edited().same_scores and not edited(paths=[]).same_scores
    with pytest.raises(UserError, match=r"by_seed.* of arm 'rl' has 3 values of 2 seeds"):
        edited(arms=[{**arm, "seeds": arm["seeds"][:2]} if arm["name"] == "rl" else arm for arm in whole["arms"]])


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("label",), 5, "label is '5'"),
        (("arm",), "../../x", r"arm is '\.\./\.\./x'"),
        (("created",), {"a": "b"}, "created is"),
        (("policy",), {}, "policy is {}"),
        (("target", "chrf"), 5, "target.chrf is 5.0, and no fraction"),
        (("target_rows", "chrf"), [1], "target_rows.chrf has 1 rows of 120"),
        (("general_rows", "em"), [], "general_rows.em has 0 rows of 120"),
        (("outputs", 0, "references"), [], "references"),
        (("outputs", 0, "source"), None, "source is 'None'"),
        (("seconds",), 10**400, "int too large"),
    ],
)
def test_what_cannot_be_a_measurement_is_refused_in_one_sentence(
    place: tuple[str | int, ...], value: object, says: str, tmp_path: Path
) -> None:
    path = make_measured("rl").write(tmp_path)
    data = at = json.loads(path.read_text(encoding="utf-8"))
    for field in place[:-1]:
        at = at[field]
    at[place[-1]] = value
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match=rf"measurement\.json cannot be read \(.*{says}"):
        find_measurements([tmp_path])


def test_one_arm_stands_against_none_and_says_nothing_it_was_not_told() -> None:
    pairs = [(path, dataclasses.replace(one, trained_by="")) for path, one in found("base", "rl", seeds=(1,))]
    alone = tax_report(pairs, command="")
    for shown in (page.html(alone, {}), page.markdown(alone, [])):
        assert "Arms against each other" not in shown
        assert "<h3>Arms</h3>" not in shown and "- RL:" not in shown


@pytest.mark.parametrize(
    ("task", "called", "paper"),
    [
        ("zh-bo", "translation zh→bo", "translation"),
        ("zh-Hant-bo", "translation zh-Hant→bo", "translation"),
        ("en-kk-Cyrl", "translation en→kk-Cyrl", "translation"),
        ("question-reply", "translation question→reply", "translation"),
        ("headline", "headlines", "headline"),
        ("instruction", "instructions", ""),
    ],
)
def test_a_task_is_called_what_it_is(task: str, called: str, paper: str) -> None:
    pairs = [(path, dataclasses.replace(one, task=task)) for path, one in found("base", "rl", seeds=(1,))]
    named = tax_report(pairs, command="")
    assert (named.task, named.paper) == (called, paper)


def test_pages_show_means_intervals_and_published_figures(report: Report) -> None:
    text = html.unescape(page.html(report, {name: "" for name in plots.draw(report)}))
    pages = (text, page.markdown(report, []))
    contrast = report.contrast("sft", "base", "tax.em")
    assert contrast is not None
    for shown in pages:
        assert f"[{100 * contrast.low:.1f}, {100 * contrast.high:.1f}]" in shown
        assert "Qwen3-4B" in shown and "0.7164" in shown and "46.97" in shown
        assert "seeds 1, 2, 3" in shown.lower()
        assert "Few-shot" not in shown  # no arm of ours stands beside it
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)


def test_ours_stand_beside_the_published_figures(report: Report) -> None:
    tables = {title: rows for title, _, rows in published.beside(report)}
    assert set(tables) == {"Translation", "Drift on CMRC against the base"}
    rl = next(arm for arm in report.arms if arm.name == "rl")
    cells = {line.name: [cell.text for cell in row] for line, row in tables["Translation"]}
    assert cells["rl"] == [
        "0.4519", f"{rl.target['bleu']:.4f}", "0.7164", f"{rl.target['similarity']:.4f}",
        "46.97", f"{100 * rl.general['average']:.2f}", "65.79", f"{100 * rl.general['f1']:.2f}", "33.5", "30.0",
    ]  # fmt: skip
    gains = dataclasses.replace(
        report,
        arms=[
            dataclasses.replace(arm, nll_drifts=(-9.0, -8.0, 0.0, 1.0)) if arm.name == "rl" else arm
            for arm in report.arms
        ],
    )
    drifts = {title: rows for title, _, rows in published.beside(gains)}["Drift on CMRC against the base"]
    assert "0.70" in [cell.text for line, row in drifts if line.name == "rl" for cell in row]  # P90, of 0 and 1
    headlines = dataclasses.replace(report, paper="headline")
    assert published.beside(headlines)[0][0] == "Headline generation"
    assert published.beside(dataclasses.replace(report, paper="")) == []


def test_plots_draw_intervals_and_every_seed(report: Report) -> None:
    figures = plots.draw(report)
    assert set(figures) == {"gain_tax", "nll_drift", "hacking", "kl_tax"}
    colour = COLOURS["sft"]
    lines = [line for line in figures["gain_tax"].axes[0].lines if line.get_color() == colour]
    contrast = report.contrast("sft", "base", "tax.em")
    assert contrast is not None
    spans = [np.asarray(line.get_xdata()).tolist() for line in lines]
    assert [100 * contrast.low, 100 * contrast.high] in spans
    assert any(len(span) == len(SEEDS) for span in spans)


@pytest.mark.parametrize(
    ("arms", "change", "sentence"),
    [
        (("rl", "sft"), {}, "no measurement is of the base, only of rl, sft"),
        (("base", "rl"), {"task": "headline"}, "its task is 'headline', not 'zh-bo'"),
        (
            ("base", "rl"),
            {"data": {part: Rows(count=120, sha256="0") for part in ("target", "general", "text")}},
            "it was measured on other target rows (120 too)",
        ),
        (("base", "rl"), {"base_fingerprint": "other"}, "it is held against another base model"),
        (("base", "rl"), {"conditions": {"max_new_tokens": 8, "dtype": "float32"}}, "its max_new_tokens is 8, not 32"),
        (
            ("base", "rl"),
            {"signatures": {"chrf": "chrF2|made up"}},
            "it was measured without similarity_reward, and the other with 'tau 0.2'; measure every arm with",
        ),
        (
            ("base", "rl"),
            {"conditions": {**make_measured("rl").conditions, "num_beams": 2}},
            "it was measured with num_beams 2, and the other without; measure every arm with one configuration",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(arms: tuple[str, ...], change: dict[str, object], sentence: str) -> None:
    pairs = found(*arms, seeds=(1,))
    path, last = pairs[-1]
    pairs[-1] = (path, dataclasses.replace(last, **change))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(sentence)):
        tax_report(pairs, command="")


def test_one_seed_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"are both arm 'rl', seed 1"):
        tax_report([*found("base", "rl", seeds=(1,)), (Path("again"), make_measured("rl"))], command="")


def test_of_several_tasks_each_is_reported_apart() -> None:
    other = [dataclasses.replace(make_measured(arm), task="headline") for arm in ("base", "rl")]
    with pytest.raises(UserError, match="its task is 'headline', not 'zh-bo'; report each task apart"):
        tax_report([*found("base", "rl", seeds=(1,)), *((Path(one.arm), one) for one in other)], command="")


def test_what_arms_were_measured_by_is_told_where_it_differs() -> None:
    h100 = {"machine": {"cores": 2, "device": "H100"}, "versions": {"torch": "2.11.0"}, "lsemrl": "0.0.1"}
    pairs = found("base", "rl", "sft", seeds=(1, 2))
    pairs[3] = (pairs[3][0], dataclasses.replace(pairs[3][1], **h100))  # type: ignore[arg-type]
    report = tax_report(pairs, command="")
    torch, device, own = "2.13.0 (RL: 2.13.0, 2.11.0)", "– (RL: –, H100)", "0.1.0 (RL: 0.1.0, 0.0.1)"
    assert report.versions == {"lsemrl": own, "torch": torch}
    assert report.machine == {"cores": 2, "device": device}
    for shown in (page.markdown(report, []), html.unescape(page.html(report, {}))):
        assert torch in shown and device in shown and own in shown


def test_one_adapter_is_no_two_seeds() -> None:
    twice = dataclasses.replace(make_measured("rl"), seed=2)
    with pytest.raises(UserError, match=r"again and rl/1 are two seeds of arm 'rl', but .* of one adapter"):
        tax_report([*found("base", "rl", seeds=(1,)), (Path("again"), twice)], command="")
    full = [make_measured("sft", seed, adapter_fingerprint="", policy_fingerprint="a") for seed in (1, 2)]
    with pytest.raises(UserError, match=r"2 and 1 are two seeds of arm 'sft', but measurements of one model"):
        tax_report([*found("base"), *((Path(str(one.seed)), one) for one in full)], command="")
    alike = dataclasses.replace(make_measured("sft"), adapter_fingerprint="rl-1")
    assert tax_report([*found("base", "rl", seeds=(1,)), (Path("other"), alike)], command="").trained


def write(folder: Path, *arms: str, seeds: tuple[int, ...] = SEEDS) -> None:
    for arm in arms:
        for seed in seeds:
            (folder / arm / f"seed_{seed}").mkdir(parents=True)
            make_measured(arm, seed).write(folder / arm / f"seed_{seed}")


def test_from_folders_to_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs", "base", "rl", "sft")
    (tmp_path / "runs" / "judge").mkdir()
    verdict = {"arms": ["sft", "rl"], "judge": {"kind": "oracle"}, "shares": {"win": 0.6, "tie": 0.1, "loss": 0.3}}
    (tmp_path / "runs" / "judge" / "judge.json").write_text(json.dumps(verdict))
    (tmp_path / "runs" / "judge" / "verdicts.jsonl").touch()
    # The same folder twice counts once.
    words = ["tax", str(tmp_path / "runs"), str(tmp_path / "runs" / "rl"), "--output", str(tmp_path / "tax")]
    main(words)
    assert Report.from_json(tmp_path / "tax" / "report.json").command == shlex.join(["lsemrl", *words])
    assert "Strong SFT" in capsys.readouterr().out
    report = Report.from_json(tmp_path / "tax" / "report.json")
    assert {arm.name: arm.judge_win for arm in report.arms} == {"base": None, "rl": 0.3, "sft": 0.6}
    assert (tmp_path / "tax" / "report.html").is_file() and (tmp_path / "tax" / "gain_tax.png").is_file()


def test_folders_without_measurements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no measurement\.json in"):
        find_measurements([tmp_path])
    with pytest.raises(UserError, match="is no folder"):
        find_measurements([tmp_path / "nowhere"])
    (tmp_path / "measurement.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match="measure again"):
        find_measurements([tmp_path])
    (tmp_path / "measurement.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="version 99"):
        find_measurements([tmp_path])


def judged(folder: Path, judge: object, *rows: tuple[str, str, str], won: float = 0.5) -> None:
    """A verdict on rl against sft; rows are an id and what each arm said."""
    folder.mkdir(parents=True)
    verdict = {"arms": ["rl", "sft"], "judge": judge, "shares": {"win": won, "loss": 1 - won}}
    (folder / "judge.json").write_text(json.dumps(verdict))
    said = [{"id": name, "outputs": {"rl": rl, "sft": sft}, "outcome": "win"} for name, rl, sft in rows]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))


def test_two_judges_are_not_mixed(tmp_path: Path) -> None:
    asked = {"kind": "endpoint", "model": "m", "task": "translation"}
    judged(tmp_path / "1", {**asked, "concurrency": 4}, won=0.4)
    judged(tmp_path / "2", {**asked, "concurrency": 8, "timeout": 9.0}, won=0.6)
    won = {arm: each.win for arm, each in find_judgement([tmp_path], []).items()}
    assert won == pytest.approx({"rl": 0.5, "sft": 0.5})
    judged(tmp_path / "3", {**asked, "task": "headline"})
    with pytest.raises(UserError, match="another judge"):
        find_judgement([tmp_path], [])


def test_a_verdict_says_of_how_many_rows_and_of_which_seeds_it_is(report: Report, tmp_path: Path) -> None:
    report.to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")
    shown = page.markdown(again, [])
    assert "- Judge win of RL: 50 rows, seed 1 alone.\n- Judge win of Strong SFT: 50 rows.\n" in shown
    arms = tuple(dataclasses.replace(arm, judged=None) for arm in report.arms)  # as files from before have it
    assert "Judge win" not in page.markdown(dataclasses.replace(report, arms=arms), [])


def test_a_verdict_on_other_outputs_is_refused(tmp_path: Path) -> None:
    measured = found("rl", "sft", seeds=(1, 2))
    measured = [(tmp_path / "measured" / path / "measurement.json", each) for path, each in measured]
    for path, each in measured:
        path.parent.mkdir(parents=True)
        rows = [{"id": str(row), "source": "s", "output": f"{each.arm} {row} {path.parent.name}"} for row in range(3)]
        path.with_name("predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Of one seed, and of some of its rows.
    judged(tmp_path / "judge" / "2", "m", ("0", "rl 0 2", "sft 0 2"), ("2", "rl 2 2", "sft 2 2"))
    each = Judged(win=0.5, rows=2, seeds=(2,), left_out=(1,))
    assert find_judgement([tmp_path / "judge"], measured) == {"rl": each, "sft": each}
    judged(tmp_path / "judge" / "old", "m", ("0", "rl 0 1", "something else"))
    with pytest.raises(UserError, match="is a verdict on other outputs of 'sft' than those measured here"):
        find_judgement([tmp_path / "judge"], measured)


def at(arm: str, seed: int, f1: float, em: float) -> tuple[Path, Measured]:
    """An arm whose rows all score alike."""
    made = make_measured(arm, seed)
    rows = {"meaning_f1": (f1,) * 120, "similarity_reward": (f1,) * 120}
    right = {"em": (em,) * 120}
    made = dataclasses.replace(
        made, target=made.target | {"meaning_f1": f1}, target_rows=made.target_rows | rows,
        general=made.general | {"em": em}, general_rows=made.general_rows | right,
    )  # fmt: skip
    return Path(arm, str(seed)), made


def test_ways_of_training_are_compared_at_the_same_score() -> None:
    pairs = [at("base", 1, 0.0, 0.9)]
    for seed, luck in ((1, 0.0), (2, 0.1)):
        pairs += [at("cold_start", seed, 0.5, 0.8), at("rl", seed, 0.7, 0.7 + luck)]
        pairs += [at("sft", seed, 0.6, 0.5), at("sft_replay", seed, 0.8, 0.1)]
    report = tax_report(pairs, command="", paths=[("cold_start", "rl"), ("sft", "sft_replay"), ("sft",)])
    long, short = report.same_scores
    # SFT passes .7 halfway between .6 and .8, where it has lost halfway between .4 and .8.
    assert (long.of, long.against, long.scores) == ("rl", "sft_replay", (0.7, 0.7))
    assert long.losses == pytest.approx((0.2, 0.1)) and long.losses_against == pytest.approx((0.6, 0.6))
    assert long.low == pytest.approx(0.45 - 12.706 * statistics.stdev((0.4, 0.5)) / 2**0.5, rel=1e-3)
    assert long.high == 1  # no way can lose more than all
    # The way of SFT alone ends at .6: RL, which passed .6 halfway from the cold start, is met there.
    assert short.against == "sft" and short.scores == (0.6, 0.6)
    assert short.losses == pytest.approx((0.15, 0.1)) and short.losses_against == pytest.approx((0.4, 0.4))
    shown = page.markdown(report, [])
    assert "At the same meaning F1 of 70.0, RL has lost 15.0 points of Chinese QA and the way to SFT" in shown
    assert "What was lost at the same score" in shown
    assert "What was lost at the same score" in page.html(report, {name: "" for name in plots.draw(report)})
    assert "| arm | Score compared at | QA exact match lost by RL | QA exact match lost by the other |" in shown
    # RL never comes up to this base, where both would be met before either has lost anything.
    above = [at("base", 1, 0.75, 0.9), *pairs[1:]]
    none = tax_report(above, command="", paths=[("cold_start", "rl"), ("sft", "sft_replay")])
    assert none.same_scores[0].scores == () and none.same_scores[0].below == (1, 2)
    told = "RL and the way to SFT + replay cannot be compared at the same meaning F1: in seeds 1, 2 RL never came above"
    assert f"{told} the base." in html.unescape(page.html(none, {}))
    compared, way = "Two ways are compared", "A way of training is its arms"
    alone = page.markdown(tax_report(pairs, command="", paths=[("cold_start", "rl")]), [])
    assert way in alone and way in shown and compared in shown and compared not in alone
    with pytest.raises(UserError, match="--path names 'grpo'; choose among the trained arms: cold_start, rl"):
        tax_report(pairs, command="", paths=[("grpo",)])


def test_seeds_that_do_not_differ_leave_no_interval(tmp_path: Path) -> None:
    """It would be of no width, and look like certainty."""
    pairs = [at("base", 1, 0.3, 0.9)]
    for seed in (1, 2):
        pairs += [at("rl", seed, 0.7, 0.85), at("sft", seed, 0.8, 0.55)]
        pairs[-2] = (pairs[-2][0], dataclasses.replace(pairs[-2][1], adapter_fingerprint=f"rl-{seed}"))
        general_json(tmp_path / str(seed), f"runs/rl/{seed}", (0.8, 0.7))
    report = tax_report(pairs, command="", paths=[("rl",), ("sft",)], general=find_general([tmp_path]))
    same, harness = report.same_scores[0], report.arms[1].harness["cmrc2018, em"]
    assert same.seeds == harness.seeds == (1, 2) and harness.after == pytest.approx(0.7)
    assert np.isnan([same.low, same.high, harness.low, harness.high]).all()


def test_seeds_that_never_came_above_the_base_are_told_and_leave_no_interval() -> None:
    pairs = [at("base", 1, 0.3, 0.9)]
    for seed, f1, em in ((1, 0.7, 0.85), (2, 0.7, 0.80), (3, 0.29, 0.2)):
        pairs += [at("rl", seed, f1, em), at("sft", seed, 0.8, 0.5)]
    report = tax_report([*pairs, at("sft_replay", 7, 0.8, 0.5)], command="", paths=[("rl",), ("sft",), ("sft_replay",)])
    some, none = report.same_scores
    assert (some.seeds, some.left_out, some.below, some.below_against) == ((1, 2), (3,), (3,), ())
    assert np.isnan([some.low, some.high]).all()
    assert (none.seeds, none.left_out, none.below) == ((), (1, 2, 3, 7), ())
    shown = page.markdown(report, [])
    assert "At the same meaning F1 of 70.0 (2 of 3 seeds), RL has lost 7.5 points of Chinese QA and the way to" in shown
    assert ": +24.5; in seed 3 RL never came above the base." in shown
    assert "the way to SFT + replay cannot be compared at the same meaning F1: there is no seed of which both" in shown
    table = shown.split("## What was lost at the same score")[1].split("##")[0]
    assert "| Strong SFT | 70.0 ±0.0 (2 of 3 seeds) | 7.5 ±3.5 |" in table
    assert "| SFT + replay | – (0 of 4 seeds) | – |" in table


@pytest.mark.usefixtures("no_plots")
def test_a_path_survives_json(tmp_path: Path) -> None:
    write(tmp_path / "runs", "base", "cold_start", "rl", "sft")
    words = ["tax", str(tmp_path / "runs"), "--output", str(tmp_path / "tax")]
    main([*words, "--path", "cold_start", "rl", "--path", "sft"])
    report = Report.from_json(tmp_path / "tax" / "report.json")
    assert report.paths == (("cold_start", "rl"), ("sft",)) and len(report.same_scores) == 1
    report.to_json(tmp_path / "again.json")
    assert Report.from_json(tmp_path / "again.json") == report


@pytest.mark.parametrize(
    "verdict",
    ["[1]", "[" * 100_000, '{"arms": ["rl", "sft"], "judge": "one", "shares": {"win": 5, "loss": 0}}', '{"arms": 1}'],
    ids=("list", "deep", "share", "arms"),
)
def test_a_verdict_that_is_none_is_refused_in_one_sentence(verdict: str, tmp_path: Path) -> None:
    (tmp_path / "judge.json").write_text(verdict)
    (tmp_path / "verdicts.jsonl").touch()
    with pytest.raises(UserError, match=r"judge\.json cannot be read"):
        find_judgement([tmp_path], [])


def test_a_judge_without_a_verdict_is_named(tmp_path: Path) -> None:
    none = {"arms": ["rl", "sft"], "judge": "one", "shares": {"win": None, "tie": None, "loss": None}}
    (tmp_path / "judge.json").write_text(json.dumps(none))
    (tmp_path / "verdicts.jsonl").touch()
    with pytest.raises(UserError, match=r"judge\.json cannot be read \(none of its judge's answers was a verdict\)"):
        find_judgement([tmp_path], [])


@pytest.mark.parametrize(
    "change", [{"name": 5}, {"before": [1]}, {"before": {"em": {"value": "high"}}}, {"after": {}}, {"difference": None}]
)
def test_scores_of_a_harness_that_are_none_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    general_json(tmp_path, "runs/rl/1", (0.8, 0.7))
    content = json.loads((tmp_path / "general.json").read_text())
    content["tasks"][0] |= change
    (tmp_path / "general.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="run lsemrl general again"):
        find_general([tmp_path])


def general_json(
    folder: Path,
    adapter: str,
    em: tuple[float, float],
    stderr: float | None = 0.02,
    twice: tuple[dict[str, object], ...] = (),
    dtype: str = "float32",
    **settings: object,
) -> None:
    def scores(value: float, error: float | None) -> dict[str, dict[str, float | None]]:
        return {"em,none": {"value": value, "stderr": error}}

    before, after = em
    task = {
        "name": "cmrc2018", "part": False, "before": scores(before, 0.03), "after": scores(after, 0.03),
        "difference": scores(after - before, stderr),
    }  # fmt: skip
    content = {
        "policy": {
            "adapter": adapter,
            "adapter_fingerprint": adapter.removeprefix("runs/").replace("/", "-"),
            "dtype": dtype,
        },
        "settings": settings,
        "tasks": [*({**task, **facts} for facts in twice or [{}]), {**task, "name": "cmrc2018_part", "part": True}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "general.json").write_text(json.dumps(content))


def test_scores_of_an_adapter_at_another_scale_are_not_those_of_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "runs", "base", "rl")
    folder = tmp_path / "runs" / "general"
    general_json(folder, "runs/rl/1", (0.8, 0.7))
    content = json.loads((folder / "general.json").read_text())
    content["policy"] |= {"adapter_scale": 0.5, "adapter_fingerprint": "rl-1 * 0.5"}
    (folder / "general.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"of the adapter 'runs/rl/1' at 0\.5, of which there is no measurement"):
        tax_report(find_measurements([tmp_path]), command="", general=find_general([tmp_path]))


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (("runs/rl/1", {}), "both hold cmrc2018 of 'runs/rl/1'; leave out one"),
        (("runs/rl/2", {"limit": 10}), r"asked cmrc2018 in two ways \(limit None and 10\)"),
        (("runs/rl/2", {"dtype": "bfloat16"}), r"\(dtype float32 and bfloat16\)"),
        (("runs/rl/2", {"num_fewshot": {"gsm8k": 2}, "batch_size": 4, "device": "cuda"}), ""),
        (("runs/rl/2", {"cmrc": "/there/cmrc.json", "include": "tasks"}), ""),
    ],
)
def test_scores_are_set_side_by_side_once_and_asked_alike(
    second: tuple[str, dict[str, object]], sentence: str, tmp_path: Path
) -> None:
    write(tmp_path / "runs", "base", "rl")
    adapter, settings = second
    general_json(tmp_path / "a", "runs/rl/1", (0.8, 0.7), limit=None, num_fewshot={}, batch_size=8)
    general_json(tmp_path / "b", adapter, (0.8, 0.6), **{"limit": None, "num_fewshot": {}, **settings})
    found = find_measurements([tmp_path / "runs"]), find_general([tmp_path])
    with pytest.raises(UserError, match=sentence) if sentence else nullcontext():
        tax_report(found[0], command="", general=found[1])


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"num_fewshot": 0}, r"a.general\.json and .* in two ways \(num_fewshot 25 and 0\)"),
        ({"num_fewshot": 25, "task_version": "2.0"}, r"\(task_version 1\.0 and 2\.0\)"),
        ({"questions_sha256": "b"}, r"\(questions_sha256 a and b\)"),
        ({"num_fewshot": 25}, ""),
        ({}, ""),  # of a version that told less
    ],
)
def test_scores_of_a_task_that_was_asked_otherwise_are_not_averaged(
    other: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    write(tmp_path / "runs", "base", "rl")
    first: dict[str, object] = {"num_fewshot": 25, "task_version": "1.0", "questions_sha256": "a"}
    general_json(tmp_path / "a", "runs/rl/1", (0.8, 0.7), twice=(first,))
    general_json(tmp_path / "b", "runs/rl/2", (0.8, 0.6), twice=(other,))
    found = find_measurements([tmp_path / "runs"]), find_general([tmp_path])
    with pytest.raises(UserError, match=sentence) if sentence else nullcontext():
        tax_report(found[0], command="", general=found[1])


def test_a_task_that_came_in_twice_is_no_second_seed(tmp_path: Path) -> None:
    write(tmp_path / "runs", "base", "rl")
    general_json(tmp_path / "a", "runs/rl/1", (0.8, 0.7), twice=({"asked_as": "a tag"}, {"asked_as": "cmrc2018"}))
    report = tax_report(find_measurements([tmp_path / "runs"]), command="", general=find_general([tmp_path]))
    score = next(arm for arm in report.arms if arm.name == "rl").harness["cmrc2018, em"]
    assert (score.low, score.high) == pytest.approx((-0.1 - 1.96 * 0.02, -0.1 + 1.96 * 0.02))
    general_json(tmp_path / "a", "runs/rl/1", (0.8, 0.7), twice=({"num_fewshot": 25}, {"num_fewshot": 0}))
    with pytest.raises(UserError, match=r"a.general\.json asked cmrc2018 in two ways \(num_fewshot 25 and 0\)"):
        tax_report(find_measurements([tmp_path / "runs"]), command="", general=find_general([tmp_path]))


def test_scores_are_of_the_adapter_that_was_asked_whatever_its_path(tmp_path: Path) -> None:
    """Runs of two projects have the same names."""
    write(tmp_path / "runs", "base", "rl", "sft")
    general_json(tmp_path / "a", "runs/rl/1", (0.8, 0.1))
    content = json.loads((tmp_path / "a" / "general.json").read_text())
    content["policy"]["adapter_fingerprint"] = "sft-1"
    (tmp_path / "a" / "general.json").write_text(json.dumps(content))
    report = tax_report(find_measurements([tmp_path / "runs"]), command="", general=find_general([tmp_path]))
    assert [arm.name for arm in report.trained if arm.harness] == ["sft"]
    alike = dataclasses.replace(make_measured("sft_replay"), adapter_fingerprint="sft-1")  # one adapter as two arms
    pairs = [*find_measurements([tmp_path / "runs"]), (Path("alike"), alike)]
    report = tax_report(pairs, command="", general=find_general([tmp_path]))
    assert [arm.name for arm in report.trained if arm.harness] == ["sft", "sft_replay"]


def test_a_page_of_ones_own_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs", "base", "rl")
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(SystemExit):
        main(["tax", str(tmp_path / "runs"), "--output", str(tmp_path)])
    assert "whose report.md is none of lsemrl's; name another folder" in capsys.readouterr().err
    assert (tmp_path / "report.md").read_text() == "mine"


@pytest.mark.usefixtures("no_plots")
def test_scores_of_the_harness_stand_in_the_same_report(tmp_path: Path) -> None:
    write(tmp_path / "runs", "base", "rl", "sft")
    for seed, after in zip(SEEDS, (0.70, 0.72, 0.74), strict=True):
        general_json(tmp_path / "runs" / "general" / str(seed), f"runs/rl/{seed}", (0.8, after))
    general_json(tmp_path / "runs" / "general" / "sft", "runs/sft/1", (0.8, 0.1), stderr=0.05)
    main(["tax", str(tmp_path / "runs"), "--output", str(tmp_path / "tax")])
    report = Report.from_json(tmp_path / "tax" / "report.json")
    rl, sft = (next(arm for arm in report.arms if arm.name == name).harness for name in ("rl", "sft"))
    assert list(rl) == ["cmrc2018, em"]  # parts of a group stay in the file
    assert rl["cmrc2018, em"].after == pytest.approx(0.72)
    assert rl["cmrc2018, em"].low == pytest.approx(-0.08 - 4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert (sft["cmrc2018, em"].low, sft["cmrc2018, em"].high) == pytest.approx((-0.7 - 0.098, -0.7 + 0.098))
    shown = (tmp_path / "tax" / "report.md").read_text()
    assert "General ability by lm-evaluation-harness" in shown and "0.720 (−0.080 [" in shown
    # One of an arm's three, with an interval over its questions, is not taken for their mean.
    assert "0.100 (−0.700 [−0.798, −0.602], seed 1 alone)" in shown and shown.count("alone") == 1
    general_json(tmp_path / "runs" / "general" / "lost", "runs/gone", (0.8, 0.8))
    with pytest.raises(UserError, match="of the adapter 'runs/gone', of which there is no measurement"):
        tax_report(find_measurements([tmp_path]), command="", general=find_general([tmp_path]))
    (tmp_path / "general.json").write_text("[]")
    with pytest.raises(UserError, match="run lsemrl general again"):
        find_general([tmp_path])
