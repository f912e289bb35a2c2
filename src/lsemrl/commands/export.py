"""`lsemrl export`: a finished run for those who have no lsemrl, on this machine or on a hub."""

from __future__ import annotations

import sys
from pathlib import Path

from lsemrl.commands.named import Model, find, tell
from lsemrl.commands.quiet import loading, quiet
from lsemrl.errors import UserError
from lsemrl.files import is_free, try_folder
from lsemrl.report.records import Report


def export(
    run: str,
    *,
    output: Path,
    merged: bool = False,
    adapter_scale: float = 1.0,
    report: Path | None = None,
    arm: str = "rl",
    push: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    root: Path = Path("runs"),
) -> None:
    """Write a run as plain folders, and upload them if asked.

    Args:
        run: A finished run, such as runs/grpo/version_0; one of its adapters, such as its best/; or "newest".
        output: New folder, for adapter/, merged/ and, of the embedded base or one in 4 bits, base/.
        merged: Write the merged model too.
        adapter_scale: How much of what was trained goes into them, in [0, 1], such as lsemrl curve found best.
        report: A report.json of lsemrl tax, whose figures go into the card.
        arm: The arm in the report that this run is.
        push: OWNER/NAME on a hub to upload to; the merged model as OWNER/NAME-merged.
        private: Of --push: new repositories are private.
        dry_run: Of --push: only say what would be sent.
        root: Where "newest" is looked for.

    Raises:
        UserError: RUN is no run or cannot be read, the report lacks the arm, or `output` holds something or cannot be
            written.
    """
    figures = (Report.from_json(report), arm) if report else None
    if figures:
        _check_arm(*figures)
    found = find(run, root)
    if isinstance(found, Model):
        raise UserError(
            f"RUN is {run!r}, an adapter or a model without its run, which peft and transformers read as it is; name a "
            "folder such as runs/grpo/version_0"
        )
    tell(run, found)
    if not is_free(output):
        raise UserError(f"--output is {str(output)!r}, which holds something already; name a new folder")
    try_folder(output, "--output")
    loading(run)
    # torch, for which words that cannot be do not wait
    from lsemrl.commands.exported import check_push, note_of_base, upload, write_folders
    from lsemrl.commands.trained import take_up

    quiet()
    trained = take_up(found, adapter_scale=adapter_scale)
    if push:
        check_push(trained, push, merged=merged)
    folders = write_folders(trained, output, merged=merged, figures=figures)
    for folder in folders:
        print(folder)
    if note := note_of_base(trained, output):
        print(note, file=sys.stderr)
    if push:
        for line in upload(trained, folders, push, private=private, dry_run=dry_run):
            print(line)


def _check_arm(report: Report, name: str) -> None:
    """Refuse an arm that the report lacks.

    Raises:
        UserError: It does.
    """
    names = [arm.name for arm in report.trained]
    if name not in names:
        raise UserError(f"--arm is {name!r}, which the report does not have; choose one of {', '.join(names)}")
