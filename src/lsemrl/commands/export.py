"""`lsemrl export`: a finished run for those who have no lsemrl, on this machine or on a hub."""

from __future__ import annotations

from pathlib import Path

from lsemrl.commands.quiet import loading, quiet
from lsemrl.report.records import Report
from lsemrl.runs import check_finished


def export(
    run: Path,
    *,
    output: Path,
    merged: bool = False,
    adapter_scale: float = 1.0,
    report: Path | None = None,
    arm: str = "rl",
    push: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Write a run as plain folders, and upload them if asked.

    Args:
        run: Folder of a finished run, such as runs/grpo/version_0.
        output: New folder, for adapter/ and merged/.
        merged: Write the merged model too.
        adapter_scale: How much of what was trained goes into them, in [0, 1], such as lsemrl curve found best.
        report: A report.json of lsemrl tax, whose figures go into the card.
        arm: The arm in the report that this run is.
        push: OWNER/NAME on a hub to upload to; the merged model as OWNER/NAME-merged.
        private: Of --push: new repositories are private.
        dry_run: Of --push: only say what would be sent.
    """
    figures = (Report.from_json(report), arm) if report else None
    check_finished(run)
    loading(str(run))
    # torch, for which words that cannot be do not wait
    from lsemrl.commands.exported import check_push, upload, write_folders
    from lsemrl.commands.trained import take_up

    quiet()
    trained = take_up(run, adapter_scale=adapter_scale)
    if push:
        check_push(trained, push, merged=merged)
    folders = write_folders(trained, output, merged=merged, figures=figures)
    for folder in folders:
        print(folder)
    if push:
        for line in upload(trained, folders, push, private=private, dry_run=dry_run):
            print(line)
