"""One adapter at several strengths: what each gains and loses, and which is best for what may be lost."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands.curve import _arm_of, _told, best_arm
from lsemrl.evaluation import measure as measuring
from lsemrl.evaluation.measurement import FILE, Measured
from lsemrl.modules.adapters.files import read_tensors
from lsemrl.report.records import Arm, Report
from small_run import fit_small

pytestmark = pytest.mark.usefixtures("no_plots")
SMALL = [
    *("--config", "measure/translation.yaml", "--text", "null", "--target_rows", "24", "--general_rows", "24"),
    *("--metrics.names", '["chrf", "meaning"]', "--target.init_args.micro.test", "24"),
    *("--general.init_args.micro.test", "24"),
]


def curve(output: Path, *words: str) -> None:
    main(["curve", str(micro.COLD_START), "--output", str(output), *SMALL, *words])


def at(scale: str, score: float, kept: float) -> Arm:
    fields = {"label": scale, "trained_by": "", "seconds": 1.0, "steps": 0, "kl": {}, "trajectory": ()}
    return Arm(name=scale, target={"meaning_f1": score}, general={"em": kept}, **fields)


@pytest.mark.parametrize(
    ("half", "whole", "best"),
    [
        ((0.4, 0.89), (0.6, 0.5), "half"),  # whole loses 40 points
        ((0.4, 0.89), (0.6, 0.88), "whole"),
        ((0.1, 0.9), (0.2, 0.9), None),  # neither gains
        ((0.4, 0.5), (0.6, 0.5), None),
    ],
)
def test_the_best_scale_gains(half: tuple[float, float], whole: tuple[float, float], best: str | None) -> None:
    fields = {"lsemrl": "0", "created": "", "task": "", "seed": 0, "command": "", "machine": {}, "versions": {}}
    arms = (at("base", 0.2, 0.9), at("half", *half), at("whole", *whole))
    assert best_arm(Report(**fields, signatures={}, seconds=0.0, arms=arms), 2.0) == best


def test_any_scale_names_an_arm_and_is_told_as_it_is() -> None:
    scales = (1.0, 0.6, 0.1234567, 1.5e-07)
    assert [_arm_of(scale) for scale in scales] == ["scale_1_0", "scale_0_6", "scale_0_1234567", "scale_1_5e_07"]
    assert [_told(scale) for scale in scales] == ["1", "0.6", "0.1234567", "1.5e-07"]


@pytest.mark.slow
def test_the_best_scale_is_the_one_that_gains_most_for_what_may_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve(tmp_path, "--scales", "1", "0.6", "--lost", "5")
    told = capsys.readouterr()
    assert told.err.count("the longest target row") == 1  # the rows are read once
    report = Report.from_json(tmp_path / "report.json")
    assert shlex.split(report.command)[:5] == ["lsemrl", "curve", str(micro.COLD_START), "--output", str(tmp_path)]
    assert report.command.endswith(shlex.join([*SMALL, "--scales", "1", "0.6", "--lost", "5"]))
    base, weak, whole = report.arms
    assert [arm.name for arm in report.arms] == ["base", "scale_0_6", "scale_1_0"]
    assert 0 < weak.target["meaning_f1"] < whole.target["meaning_f1"]
    lost = [100 * (base.general["em"] - arm.general["em"]) for arm in (weak, whole)]
    assert lost[0] <= 5 < lost[1]  # else nothing is chosen here
    assert weak.label == "at 0.6, best within 5 points" and whole.label == "at 1"
    assert "0.6 gains most" in told.out and "--adapter-scale 0.6" in told.out
    measured = Measured.read(tmp_path / "scale_0_6" / FILE)
    assert measured.policy["adapter_scale"] == 0.6 and measured.adapter_fingerprint.endswith(" * 0.6")
    assert "adapter_scale" not in Measured.read(tmp_path / "scale_1_0" / FILE).policy


def test_what_was_measured_is_not_measured_again_and_no_other_adapter_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--target_rows", "2", "--general_rows", "2", "--max_new_tokens", "4")
    curve(tmp_path, "--scales", "1", *small)
    report = Report.from_json(tmp_path / "report.json")
    monkeypatch.setattr(measuring, "measure", lambda *asked, **settings: 1 / 0)
    curve(tmp_path, "--scales", "1", *small)
    assert Report.from_json(tmp_path / "report.json").arms == report.arms
    for other in (("--scales", "0.5"), ("--scales", "1", "--threshold", "0.5")):
        with pytest.raises(ZeroDivisionError):
            curve(tmp_path, *small, *other)
    path = tmp_path / "scale_1_0" / FILE
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, "adapter_fingerprint": "0123456789abcdef"}), encoding="utf-8")
    with pytest.raises(SystemExit):
        curve(tmp_path, "--scales", "0.5", *small)
    assert "which holds another adapter's curve; name another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_newest_run_is_named_in_the_command(tmp_path: Path) -> None:
    made = fit_small(tmp_path / "runs")
    words = ["curve", "newest", "--root", str(tmp_path / "runs"), "--output", str(tmp_path / "curve"), "--scales", "1"]
    main([*words, *SMALL])
    command = Report.from_json(tmp_path / "curve" / "report.json").command
    assert command == shlex.join(["lsemrl", "curve", str(made), *words[2:], *SMALL])


@pytest.mark.slow
def test_where_all_lose_more_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve(tmp_path, "--scales", "1", "--lost", "0")
    assert "no scale gains and loses at most 0 points" in capsys.readouterr().out


def test_where_none_gains_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve(tmp_path, "--scales", "1e-5", "--target_rows", "2", "--general_rows", "8", "--max_new_tokens", "4")
    assert "no scale is best: none gains meaning F1 over the base\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--scales", "1.5"], "--scales is [1.5]"),
        (["--scales", "0"], "at least one of them above 0"),
        (["--lost", "-1"], "--lost is -1"),
        (["--general", "null"], "general is null"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        curve(tmp_path / "new", *words)
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_metrics_that_tell_no_gain_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure", lambda *asked, **settings: 1 / 0)
    with pytest.raises(SystemExit):
        curve(tmp_path, "--metrics.names", '["chrf_pp"]')
    assert "metrics.names is ['chrf_pp'], by none of which scales are compared; add chrf" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_without_an_adapter_has_nothing_to_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["curve", "micro", "--output", str(tmp_path / "new"), *SMALL])
    assert "no adapter to scale" in capsys.readouterr().err
    for verb in ("generate", "chat"):
        with pytest.raises(SystemExit):
            main([verb, "micro", "--adapter-scale", "0.5"])
        assert "--adapter-scale is 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_exported_at_a_scale_is_that_much_of_the_adapter(tmp_path: Path) -> None:
    run = fit_small(tmp_path)
    for name, words in (("whole", []), ("half", ["--adapter-scale", "0.5"])):
        main(["export", str(run), "--output", str(tmp_path / name), *words])
    whole, half = (read_tensors(tmp_path / name / "adapter") for name in ("whole", "half"))
    assert whole.keys() == half.keys() and any("lora_B" in key for key in whole)
    for key, tensor in whole.items():
        torch.testing.assert_close(half[key], tensor * (0.5 if "lora_B" in key else 1.0))
    card = (tmp_path / "half" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "at 0.5 of its strength" in card
