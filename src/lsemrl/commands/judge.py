"""`lsemrl judge`: two arms' predictions, compared row by row."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from lsemrl.judging.comparison import table
from lsemrl.judging.endpoint import Endpoint
from lsemrl.judging.judge import Task, run_judge


def judge(
    arms: list[str],
    *,
    oracle: bool = False,
    endpoint: Endpoint | None = None,
    task: Task = "translation",
    language: str = "bo",
    prompt: Path | None = None,
    invalid_retries: int = 2,
    output: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Compare two arms, and print who won how often.

    Args:
        arms: Two times NAME=FILE: an arm's name and its predictions.jsonl.
        oracle: Judge by the oracle of the embedded world.
        endpoint: Judge by a chat-completions endpoint.
        task: What the outputs are meant to be.
        language: The language they are meant to be in.
        prompt: File with a prompt of your own, holding {source} {first} {second}.
        invalid_retries: Further tries where no verdict can be read.
        output: Folder for the result; by default runs/judge/FIRST_SECOND.
        cache: Folder for replies; by default cache/ in the output folder.
    """
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        asked = bar.add_task("judging", total=None)
        try:
            comparison, path = run_judge(
                arms,
                oracle=oracle,
                endpoint=endpoint,
                task=task,
                language=language,
                prompt=prompt,
                invalid_retries=invalid_retries,
                output=output,
                cache=cache,
                progress=lambda done, total: bar.update(asked, completed=done, total=total),
            )
        except KeyboardInterrupt:
            print("lsemrl: stopped; replies so far are kept, and the same command goes on from there", file=sys.stderr)
            raise SystemExit(130) from None
    Console().print(table(comparison))
    print(path)
