"""`lsemrl judge`: two arms' predictions, compared row by row."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lsemrl.errors import UserError
from lsemrl.files import try_folder
from lsemrl.json_records import UNREADABLE
from lsemrl.judging.client import ReplyCache
from lsemrl.judging.comparison import (
    Comparison,
    Judgement,
    Pair,
    decides_verdicts,
    pair_up,
    read_predictions,
    table,
    write_comparison,
)
from lsemrl.judging.endpoint import Endpoint
from lsemrl.judging.judge import PROMPT, Task, judge_by_endpoint, judge_by_oracle
from lsemrl.reading import Unreadable, read_json, read_text, user_path


def judge(
    arms: list[str],
    *,
    oracle: bool = False,
    endpoint: Endpoint | None = None,
    task: Task = "translation",
    language: str | None = None,
    prompt: Path | None = None,
    invalid_retries: int = 2,
    output: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Compare two arms from their files, and print who won how often.

    Args:
        arms: Two times NAME=FILE: an arm's name and its predictions.jsonl.
        oracle: Judge by the oracle of the embedded world.
        endpoint: Judge by a chat-completions endpoint.
        task: What the outputs are meant to be.
        language: Code of the language they are meant to be in; an endpoint is told it, the oracle knows its own.
        prompt: File with a prompt of your own, holding {source} {first} {second}.
        invalid_retries: Further tries where no verdict can be read.
        output: Folder for the result; by default runs/judge/FIRST_SECOND.
        cache: Folder for replies; by default cache/ in the output folder.

    Raises:
        UserError: Anything that the user can mend.
    """
    if oracle == (endpoint is not None):
        raise UserError("choose one judge: --oracle, or --endpoint.base_url with --endpoint.model")
    if oracle:
        for name, given in (("language", language), ("prompt", prompt), ("cache", cache)):
            if given is not None:
                raise UserError(f"--{name} is {str(given)!r}, which the oracle does not ask for; leave it out")
    elif language is None:
        raise UserError("--language is not given; name that which the outputs are meant to be in, such as bo")
    if len(arms) != 2:
        raise UserError(f"{len(arms)} arms are given, and two are compared: write NAME=predictions.jsonl for each")
    (first, first_file), (second, second_file) = map(_arm, arms)
    if first == second:
        raise UserError(f"both arms are named {first!r}; give them different names")
    rows = (read_predictions(first_file), read_predictions(second_file))
    pairs = pair_up(*rows)
    output = output or Path("runs/judge") / f"{first}_{second}"
    files = tuple(os.path.relpath(file.resolve(), output.resolve()) for file in (first_file, second_file))
    by: dict[str, Any] = {"kind": "oracle"}
    asking: dict[str, Any] = {}
    if endpoint is not None:
        asking = {"task": task, "language": language}
        asking |= {"template": _read_template(prompt) if prompt else PROMPT, "invalid_retries": invalid_retries}
        by = {"kind": "endpoint", **asdict(endpoint), **asking, "template_by": str(prompt or "lsemrl")}
    _check_folder(output, files, by)
    try_folder(output, "--output")
    if endpoint is None:
        judgements = judge_by_oracle(pairs)
    else:
        judgements = _ask(pairs, endpoint, ReplyCache(cache or output / "cache"), asking)
    comparison = Comparison(
        arms=(first, second),
        files=files,
        judge=by,
        pairs=pairs,
        judgements=tuple(judgements),
        missing=(len(rows[0]) - len(pairs), len(rows[1]) - len(pairs)),
    )
    path = write_comparison(comparison, output)
    Console().print(table(comparison))
    print(path)


def _check_folder(output: Path, files: tuple[str, ...], by: dict[str, Any]) -> None:
    """Refuse a folder that holds the verdict on other files, or of another judge."""
    path = output / "judge.json"
    if not path.exists():
        return
    try:
        there = read_json(path)
        found, judge = there["files"], decides_verdicts(there["judge"])
    except UNREADABLE:
        found, judge = None, None
    if found == list(files) and judge != decides_verdicts(by):
        raise UserError(f"--output is {str(output)!r}, which holds another judge's verdict; name another folder")
    if found != list(files):
        of = f" on {' and '.join(map(str, found))}" if isinstance(found, list) else ""
        raise UserError(f"--output is {str(output)!r}, which holds a verdict{of}; name another folder")


def _ask(pairs: Sequence[Pair], endpoint: Endpoint, replies: ReplyCache, asking: dict[str, Any]) -> list[Judgement]:
    """`judge_by_endpoint`, with a bar that says how far it is."""
    try:
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("judging", total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return judge_by_endpoint(pairs, endpoint, replies, **asking, progress=show)
    except KeyboardInterrupt:  # once the bar has let go of standard error
        print("lsemrl: stopped; replies so far are kept, and the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None


def _arm(word: str) -> tuple[str, Path]:
    name, _, file = word.partition("=")
    if not name.isidentifier() or not file:
        raise UserError(f"an arm is given as {word!r}; write NAME=predictions.jsonl, the name in letters and digits")
    return name, user_path(file)


def _read_template(path: Path) -> str:
    try:
        return read_text(path)
    except Unreadable as reason:
        raise UserError(f"--prompt is {str(path)!r}, which cannot be read ({reason}); name a text file") from reason
