"""`lsemrl generate`: texts from a file, from standard input or at a prompt, each answered in a line."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from lsemrl.commands.named import find, tell
from lsemrl.commands.quiet import loading, quiet
from lsemrl.durations import Pace
from lsemrl.errors import UserError
from lsemrl.files import replacing, write_text
from lsemrl.foreign import visible
from lsemrl.reading import Unreadable, fault_of, lines, read_lines
from lsemrl.unfinished import Unfinished

T = TypeVar("T")


def generate(
    run: str,
    *,
    input: Path | None = None,
    output: Path | None = None,
    sample: bool = False,
    seed: int = 1,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    guarded: bool = False,
    adapter_scale: float = 1.0,
    root: Path = Path("runs"),
) -> None:
    """Answer texts, a line each.

    Args:
        run: A finished run, such as runs/grpo/version_0, or one of its adapters, such as its best/, whose task a text
            is the input of; "newest"; or another adapter, an exported folder, a model, a hub id or "micro", to which a
            text is the whole instruction.
        input: File with a text a line; otherwise standard input.
        output: File for an output a line; otherwise standard output. With --input, a command that was interrupted goes
            on where it was when it is given again.
        sample: Draw as the run drew (without a run, or a run of SFT: temperature 0.8, top-p 0.9), rather than greedily.
        seed: Of --sample.
        batch_size: Texts answered at once; one at a prompt.
        max_new_tokens: Longest answer; by default the run's own, without a run 256.
        num_beams: Beams of a beam search, which follows as many beginnings of an answer and takes the likeliest whole,
            for as many times as long; 1 takes the likeliest token.
        guarded: Of what the beams find take the likeliest that is no copy of its text, no loop and not broken, where
            there is one.
        adapter_scale: How much of the adapter to take, in [0, 1]: less gives back what was forgotten.
        root: Where "newest" is looked for.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; give at least 1")
    check_new_tokens(max_new_tokens)
    if num_beams < 1 or (sample and num_beams > 1):
        raise UserError(f"--num-beams is {num_beams}; give at least 1, and 1 with --sample, as beams draw nothing")
    if guarded and num_beams == 1:
        raise UserError("--guarded chooses among what beams find; give --num-beams 4, say, or leave it out")
    if sys.stdout is None and not output:
        raise UserError("standard output is closed and --output is not given; name a file by --output")
    found = find(run, root)
    tell(run, found)
    at_prompt = input is None and sys.stdin is not None and sys.stdin.isatty()
    texts = asked("a text and Enter; Ctrl-D or an empty line ends") if at_prompt else _texts(input)
    loading(run)
    # torch, for which words that cannot be do not wait
    from lsemrl.commands.answers import answer, check_one_input, check_texts, load, one_each, what_answers
    from lsemrl.commands.trained import take_up
    from lsemrl.modules.policy import Policy

    quiet()
    trained = take_up(found, max_new_tokens, adapter_scale)
    check_one_input(trained)
    sampling = one_each(trained.sampling, greedy=not sample, num_beams=num_beams, guarded=guarded)
    policy = Policy(trained.policy)
    if isinstance(texts, list):
        check_texts(trained, policy, texts)
    if isinstance(texts, list) and output and (output.is_file() or not output.exists()):
        drawn = {"seed": seed, "batch_size": batch_size} if sample else {}
        with Unfinished(output) as part:
            load(policy)
            what = what_answers(trained, policy, sampling)
            part.take_up({**what, **drawn, "texts": digest(texts)}, batch_size)
            if part.lines:
                print(f"{len(part.lines):,} of {len(texts):,} texts were answered already", file=sys.stderr)
            left, seed = texts[len(part.lines) :], seed + len(part.lines) // batch_size
            answers = answer(trained, policy, left, sampling, seed=seed, batch_size=batch_size)
            for each in counted(answers, batch_size, len(part.lines), len(texts)):
                part.add(json.dumps(each, ensure_ascii=False))
            whole = [json.loads(line) for line in part.lines]
            write_text(output, "".join(f"{_line(said)}\n" for said, _ in whole), "--output")
        print(visible(f"{len(texts):,} answers in {output}"), file=sys.stderr)
        _tell(Counter(fault for _, fault in whole))
        return
    faults: Counter[str] = Counter()
    with ExitStack() as files:
        out = files.enter_context(replacing(output, "--output")) if output else sys.stdout
        size = 1 if at_prompt else batch_size
        answers = answer(trained, load(policy), texts, sampling, seed=seed, batch_size=size)
        for said, fault in counted(answers, size) if output and not at_prompt else answers:
            line = _line(said)
            print(visible(line) if out.isatty() else line, file=out, flush=True)
            faults[fault] += 1
    _tell(faults)


def _line(said: str) -> str:
    return " ".join(said.splitlines())


def _tell(faults: Counter[str]) -> None:
    """Say how many of the answers are not whole: whoever reads a file of them sees no end."""
    for fault, count in faults.items():
        if fault:
            print(f"{count:,} of {faults.total():,} answers were {fault}", file=sys.stderr)


def counted(answers: Iterable[T], batch_size: int, already: int = 0, total: int | None = None) -> Iterator[T]:
    """Answers as they come; how many there are is said on standard error, at most every 30 seconds.

    Args:
        answers: Those that are still to come.
        batch_size: How many come at once.
        already: How many there were before.
        total: How many there will be; None where nobody knows.
    """
    pace = Pace(at_once=False)
    for count, answer in enumerate(answers, start=1):
        yield answer
        done = already + count
        if count % batch_size == 0 and done != total and pace.due():
            left = f" of {total:,} texts; {pace.left(count, total - already)}" if total else " texts"
            print(f"{done:,}{left}", file=sys.stderr, flush=True)


def digest(texts: Sequence[str]) -> str:
    """Tells these texts from others."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()


def _texts(path: Path | None) -> Iterable[str]:
    """The lines of a file, looked at before a model is read, or those of standard input as they come."""
    try:
        if path is not None:
            texts = list(_whole_lines(read_lines(path), str(path)))
            _warn_of_rows(texts, path)
            return texts
    except Unreadable as reason:
        raise UserError(f"'{path}' cannot be opened ({reason}); name another file") from None
    return typed()


def _warn_of_rows(texts: Sequence[str], path: Path) -> None:
    """Warn of lines that are rows of a data set: answered whole, they show the answer that they hold."""
    written = [text.strip() for text in texts if text.strip()]
    rows = sum("\t" in text or (text.startswith("{") and text.endswith("}")) for text in written)
    if 2 * rows > len(written):
        told = (
            f"warning: {rows:,} of {len(written):,} lines of {path} are rows with fields (JSON, or parted by tabs); a "
            "line is answered whole, as one text: give a file of the texts alone"
        )
        print(visible(told), file=sys.stderr)


def typed() -> Iterator[str]:
    """The lines of standard input as they come.

    Raises:
        UserError: It is closed; while it is read, a line is no text.
    """
    if sys.stdin is None:
        raise UserError("standard input is closed; give it lines, or a file by --input to lsemrl generate")
    # A notebook's standard input has text only.
    raw = getattr(sys.stdin, "buffer", None) or (line.encode("utf-8", "surrogateescape") for line in sys.stdin)
    return _whole_lines(lines(raw), "standard input")


def _whole_lines(texts: Iterable[str], name: str) -> Iterator[str]:
    try:
        for number, text in enumerate(texts, start=1):
            if fault := fault_of(text):
                raise UserError(f"{name}:{number}: {fault}; mend the line")
            yield text
    except Unreadable as reason:
        raise UserError(f"{name} cannot be read ({reason})") from None


def asked(how: str) -> Iterator[str]:
    """What is typed at a prompt, until Ctrl-D or an empty line; `how` is said first."""
    with suppress(ImportError):
        import readline  # noqa: F401 - arrows move, and bring earlier lines back
    print(how, file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if not text.strip():
            return
        if fault := fault_of(text):
            print(f"lsemrl: the line {fault}; type it again", file=sys.stderr)
        else:
            yield text


def check_new_tokens(count: int | None) -> None:
    """Refuse an answer without tokens.

    Raises:
        UserError: `count` is below 1.
    """
    if count is not None and count < 1:
        raise UserError(f"--max-new-tokens is {count}; give at least 1")
