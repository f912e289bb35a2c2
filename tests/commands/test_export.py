"""What `lsemrl export` refuses before a model is read; what it writes is in test_generate.py and test_push.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lsemrl.cli.main import main
from lsemrl.commands import exported
from lsemrl.commands.trained import read_run
from lsemrl.report.tax_report import tax_report
from lsemrl.runs import begin_run, finish_run
from made_up import make_measured


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The outside of a run, in which nothing could be read."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/version_0")
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").touch()
    return run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["newest", "--output", "runs"], "--output is 'runs', which holds something already; name a new folder"),
        (
            ["newest", "--output", "new", "--report", "report.json", "--arm", "grpo"],
            "--arm is 'grpo', which the report does not have; choose one of rl, sft",
        ),
        (["micro", "--output", "new"], "RUN is 'micro', an adapter or a model without its run"),
        (["runs", "--output", "new"], "name one of those inside, such as runs/version_0"),
        (["newest", "--output", "new", "--root", "elsewhere"], "there is no finished run under --root 'elsewhere'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(
    words: list[str], sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tax_report([(Path(arm), make_measured(arm)) for arm in ("base", "rl", "sft")], command="").to_json(
        Path("report.json")
    )
    with pytest.raises(SystemExit) as exit_:
        main(["export", *words])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and sentence in said and "loading" not in said
    assert not Path("new").exists()


def test_the_newest_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "newest", "--output", "new"])
    said = capsys.readouterr().err
    assert said.startswith(f"newest: {run}\nloading newest\n") and "whose config.yaml cannot be read" in said


def test_a_card_counts_batches_that_were_not_logged_nor_saved(tmp_path: Path) -> None:
    run = begin_run(tmp_path, {}, resume=False)
    (run / "metrics.csv").write_text("rollout_step,loss\n1,0.5\n")
    assert exported._steps(run, run / "adapter") == 2
    finish_run(run, 3)
    assert exported._steps(run, run / "adapter") == 3


def test_a_card_tells_scores_of_both_tasks_apart_and_values_from_differences() -> None:
    report = tax_report([(Path(arm), make_measured(arm)) for arm in ("base", "rl")], command="")
    lines = exported._figures(report, "rl", "rl-1")
    heads = [line.split("|")[1] for line in lines if line.startswith("|")]
    assert len(set(heads)) == len(heads) and " Chinese QA, exact match " in heads
    gained, base = report.contrast("rl", "base", "target.meaning_f1"), report.base.target["meaning_f1"]
    assert gained is not None
    figures = (
        f"{100 * base:.1f} | {100 * (base + gained.value):.1f} (+{100 * gained.value:.1f} [{100 * gained.low:.1f}, "
    )
    assert any(line.startswith(f"| New task, meaning F1 | {figures}") for line in lines)


def test_a_card_names_the_seeds_of_its_own_arm() -> None:
    measured = [("base", 1), ("sft", 1), ("sft", 2), ("sft", 3), ("rl", 7)]
    report = tax_report([(Path(f"{arm}{seed}"), make_measured(arm, seed)) for arm, seed in measured], command="")
    one, several = (exported._figures(report, arm, f"{arm}-{seed}")[2] for arm, seed in (("rl", 7), ("sft", 2)))
    assert ", seed 7. General ability" in one
    assert ", seeds 1, 2, 3. Figures are means over these; this adapter is of one of them. General ability" in several


@pytest.mark.parametrize("mixed", [False, True])
def test_a_card_names_the_other_rows_of_a_mixture(run: Path, mixed: bool) -> None:
    main_rows, replay = (
        {"class_path": "lsemrl.data.translation.TranslationData", "init_args": {"source": {"path": path}}}
        for path in ("micro", "bible.jsonl")
    )
    own = {"class_path": "mine.Data", "init_args": {"size": 2}}
    fields = {"main": main_rows, "replay": replay, "replay_share": 0.3, "more": [{"data": own, "share": 0.2}]}
    data = {"class_path": "lsemrl.data.mixed.MixedData", "init_args": fields} if mixed else main_rows
    settings = {"policy": {"model": "micro"}, "max_new_tokens": 4}
    model = {"class_path": "lsemrl.modules.sft.SFT", "init_args": settings}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}), encoding="utf-8")
    beside = ", 30% of the rows from bible.jsonl, 20% of the rows from mine.Data" if mixed else ""
    assert exported._rows(read_run(run)) == f"micro (part all){beside}"
