"""`lsemrl generate`: texts from a file, from standard input or at a prompt, each answered in a line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from lsemrl.commands.quiet import quiet
from lsemrl.errors import UserError
from lsemrl.files import replacing
from lsemrl.foreign import visible
from lsemrl.reading import Unreadable, fault_of, lines, read_lines
from lsemrl.runs import check_finished


def generate(
    run: Path,
    *,
    input: Path | None = None,
    output: Path | None = None,
    sample: bool = False,
    seed: int = 1,
    batch_size: int = 64,
) -> None:
    """Answer texts with a finished run.

    Args:
        run: Folder of a finished run, such as runs/grpo/version_0.
        input: File with a text a line; otherwise standard input.
        output: File for an output a line; otherwise standard output.
        sample: Draw as the run drew, rather than greedily.
        seed: Of --sample.
        batch_size: Texts answered at once; one at a prompt.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; give at least 1")
    if sys.stdout is None and not output:
        raise UserError("standard output is closed and --output is not given; name a file by --output")
    check_finished(run)
    at_prompt = input is None and sys.stdin is not None and sys.stdin.isatty()
    texts = _asked() if at_prompt else _texts(input)
    from lsemrl.commands.trained import answer, read_run  # torch, for which words that cannot be do not wait

    quiet()
    trained = read_run(run)
    with ExitStack() as files:
        out = files.enter_context(replacing(output, "--output")) if output else sys.stdout
        for _, said in answer(trained, texts, greedy=not sample, seed=seed, batch_size=1 if at_prompt else batch_size):
            line = " ".join(said.splitlines())
            print(visible(line) if out.isatty() else line, file=out, flush=True)


def _texts(path: Path | None) -> Iterable[str]:
    """The lines of a file, looked at before a model is read, or those of standard input as they come."""
    try:
        if path is not None:
            return list(_whole_lines(read_lines(path), str(path)))
    except Unreadable as reason:
        raise UserError(f"'{path}' cannot be opened ({reason}); name another file") from None
    if sys.stdin is None:
        raise UserError("standard input is closed; give --input")
    # A notebook's standard input has text only.
    typed = getattr(sys.stdin, "buffer", None) or (line.encode("utf-8", "surrogateescape") for line in sys.stdin)
    return _whole_lines(lines(typed), "standard input")


def _whole_lines(texts: Iterable[str], name: str) -> Iterator[str]:
    try:
        for number, text in enumerate(texts, start=1):
            if fault := fault_of(text):
                raise UserError(f"{name}:{number}: {fault}; mend the line")
            yield text
    except Unreadable as reason:
        raise UserError(f"{name} cannot be read ({reason})") from None


def _asked() -> Iterator[str]:
    """What is typed at a prompt, until Ctrl-D or an empty line."""
    print("a text and Enter; Ctrl-D or an empty line ends", file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if not text.strip():
            return
        yield text
