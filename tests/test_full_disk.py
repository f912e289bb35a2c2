"""Wherever something is written, a full disk is one sentence that names the file, and what was there stays."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from full_disk import full_disk
from lsemrl.cli import main as cli
from lsemrl.data.records import Fields, read_records
from lsemrl.data.sources import Source
from lsemrl.errors import UserError
from lsemrl.judging.client import Reply, ReplyCache
from lsemrl.judging.comparison import Comparison, Judgement, Pair, write_comparison
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.report.records import Report
from lsemrl.report.tax_report import tax_report
from lsemrl.report.write import write_report
from lsemrl.runs import begin_run, finish_run
from made_up import make_measured
from matrix import slow_but


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report() -> Report:
    return tax_report([(Path(arm), make_measured(arm)) for arm in ("base", "rl")], command="lsemrl tax m")


def compare(folder: Path) -> None:
    pair = Pair(id="1", source="s", outputs=("x", "y"))
    verdict = Judgement(outcome="tie")
    judged = {"pairs": (pair,), "judgements": (verdict,), "missing": (0, 0)}
    write_comparison(Comparison(arms=("a", "b"), files=("f", "g"), judge={}, **judged), folder)


def skip(folder: Path) -> None:
    rows = folder.parent / "rows.jsonl"
    if not rows.exists():
        rows.write_text('{"zh": "a", "bo": "b"}\n{}\n')
    source = Source(path=str(rows), on_bad_row="skip", skipped_path=str(folder / "left.jsonl"))
    read_records(source, Fields(inputs=("zh",), target="bo"))


WRITERS: dict[str, Callable[[Path], object]] = {
    "report": lambda folder: write_report(report(), folder),
    "measurement": lambda folder: make_measured("rl").write(folder),
    "verdicts": compare,
    "replies": lambda folder: ReplyCache(folder).put("0", (Reply(text="A"),)),
    "skipped rows": skip,
    "end of a run": lambda folder: finish_run(folder, 3),
}


@pytest.mark.parametrize("size", slow_but([0, 20], [20]))
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_there_stays(name: str, size: int, tmp_path: Path) -> None:
    folder = begin_run(tmp_path, {}, resume=False)
    WRITERS[name](folder)
    before = contents(folder)
    sentence = rf"{folder}/[\w.]+'.* cannot be written to \(File too large\); make room"
    with full_disk(size), pytest.raises(UserError, match=sentence):
        WRITERS[name](folder)
    assert contents(folder) == before


def test_events_are_read_up_to_the_last_whole_one(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    log = MetricsLog(str(tmp_path), events=True)
    log.rewind(3)
    log.log_metrics({"kl": 0.5}, 3)
    (path,) = tmp_path.glob("*tfevents*")
    with full_disk(path.stat().st_size + 9), pytest.raises(UserError, match=r"tfevents.* cannot be written to"):
        log.log_metrics({"kl": 0.25}, 4)
    log.log_metrics({"kl": 0.125}, 5)
    version, begun, *rows = EventFileLoader(str(path)).Load()
    assert version.file_version == "brain.Event:2" and begun.step == 3
    assert [(row.step, row.summary.value[0].tag) for row in rows] == [(3, "kl"), (5, "kl")]


def test_what_only_a_library_writes_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("parser") from OSError(errno.ENOSPC, "No space left on device", "/cache/kernel")

    monkeypatch.setattr("lsemrl.commands.report.report", fail)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["report"])
    assert exit_.value.code == 2
    sentence = "/cache/kernel cannot be written to (No space left on device); make room, and run the same command again"
    assert capsys.readouterr().err == f"lsemrl: error: {sentence}\n"
