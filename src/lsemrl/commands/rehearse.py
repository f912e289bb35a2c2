"""`lsemrl rehearse`: text that the base writes by itself, to hold a policy to what it knew (see `modules.anchor`)."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

from lsemrl import __version__
from lsemrl.commands.quiet import loading, quiet
from lsemrl.commands.rehearsed import Written
from lsemrl.data.base import TaskData
from lsemrl.data.rehearsal import Rehearsed, digest_of, likeliest_path, reasons, text_of, why_not
from lsemrl.data.sources import FORMATS
from lsemrl.data.splits import evenly
from lsemrl.data.tokens import special_ids
from lsemrl.durations import Pace
from lsemrl.files import try_folder, write_bytes, write_text
from lsemrl.finite import check_seed
from lsemrl.foreign import markdown
from lsemrl.layouts import format_of
from lsemrl.local_paths import name_only
from lsemrl.locks import held
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.reading import Unreadable, read_lines
from lsemrl.scripts import scripts_of
from lsemrl.types import UserError

if TYPE_CHECKING:
    from lsemrl.modules.policy import Policy
    from lsemrl.modules.rehearsing import Turn

_HOPELESS = 20
"""Batches of what the base wrote from nothing, of which as many rows as are in one must be kept."""
_REMEDIES = {
    "the answer did not end": "raise --max-new-tokens, or give --cut-answers",
    "the prompt did not end": "raise --max-prompt-tokens",
    "--without speaks of it": "let --without match less",
    "it was there already": "ask for fewer --rows",
}
_SHOWN = 12


def rehearse(
    *,
    output: Path,
    policy: PolicySettings = PolicySettings(),
    rows: int = 2000,
    prompts: Path | TaskData | None = None,
    without: str = "",
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_prompt_tokens: int = 256,
    max_new_tokens: int = 256,
    cut_answers: bool = False,
    batch_size: int = 64,
    top_k: int = 32,
    seed: int = 1,
) -> None:
    """Have the base write prompts and answers, and keep them with their tokens.

    Args:
        output: The file for them, .jsonl; what wrote them, the likeliest tokens and a page lie beside it.
        policy: The base; no adapter plays a part.
        rows: How many rows the base writes from nothing.
        prompts: Prompts of the user's own, answered besides, the longest first: a file of them, one a line, or in a
            configuration a data module, whose training rows' prompts are taken.
        without: A regular expression; what the base writes and it matches, in prompt or answer, is not kept.
        temperature: Of prompts and answers; 1 draws as the base would.
        top_p: Likewise.
        max_prompt_tokens: Longest prompt that the base may write.
        max_new_tokens: Longest answer; rows that do not end within it are dropped and counted.
        cut_answers: Keep these too, as far as they go: an anchor holds token by token and needs no end. They are no
            data to train on otherwise, since that would teach to stop there.
        batch_size: Rows written at once.
        top_k: How many of the base's likeliest tokens are kept for every token of the answers; 0 keeps none.
        seed: Of the drawing; the same command goes on where it was stopped.

    Raises:
        UserError: The model cannot be read, `output` holds something else or is another process's, or next to nothing
            ends by itself.
    """
    check_seed(seed, "--seed")
    if output.suffix != ".jsonl":
        raise UserError(f"--output is {str(output)!r}; name a file that ends in .jsonl")
    for name, value, least in (
        ("rows", rows, 0),
        ("batch-size", batch_size, 1),
        ("top-k", top_k, 0),
        ("max-prompt-tokens", max_prompt_tokens, 1),
        ("max-new-tokens", max_new_tokens, 1),
    ):
        if value < least:
            raise UserError(f"--{name} is {value}; give {least} or more")
    asking = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_prompt_tokens)
    answering = replace(asking, max_new_tokens=max_new_tokens)
    if not rows and prompts is None:
        raise UserError("--rows is 0 and --prompts is not given; ask for rows, or name a file of prompts")
    try:
        kept_out = re.compile(without) if without else None
    except re.error as error:
        raise UserError(f"--without is {without!r}, which is no regular expression ({error}); correct it") from None
    if policy.adapter is not None:
        raise UserError(f"--policy.adapter is {policy.adapter!r}, but the base writes without one; leave it out")
    if isinstance(prompts, TaskData):
        prompts.check_files()
    given = _lines(prompts) if isinstance(prompts, Path) else prompts or ()
    try_folder(output.parent, "--output")
    with held(output, "--output"):
        loading(policy.model)
        # torch and peft, for which words that cannot be do not wait
        from lsemrl.devices import computing_device, slow_dtype
        from lsemrl.modules.policy import Policy
        from lsemrl.modules.rehearsing import given_prompts, turn_of, write_answers, write_prompts
        from lsemrl.modules.spans import fitting

        quiet()
        base = Policy(policy)
        turn = turn_of(base)
        if rows:
            _warn_of_end(base, turn)
        own = given_prompts(base, turn, given)
        if not rows and not own:
            raise UserError(
                f"--rows is 0 and --prompts is {str(prompts)!r}, which holds no prompts; ask for rows, or fill it"
            )
        spans = {}
        if own:
            spans[f"longest given prompt with {max_new_tokens:,} new tokens"] = len(own[0].ids) + max_new_tokens
        if rows:
            before = len(turn.before) + (max_prompt_tokens + len(turn.after) if turn.after else 0)
            spans["longest prompt of the base's own, with its answer"] = before + max_new_tokens
        for line in fitting(policy.model, base.config, spans, "shorten --prompts or lower --max-prompt-tokens"):
            print(line, file=sys.stderr)
        if line := slow_dtype(policy.dtype, device := computing_device()):
            print(line, file=sys.stderr)
        base.load()
        base.to(device)
        settings = {
            "model": policy.model,
            "fingerprint": base.fingerprint,
            "lsemrl": __version__,
            "template": base.tokenizer.chat_template or "",
            "prompts": [each.text for each in own],
            "without": without,
            "temperature": temperature,
            "top_p": top_p,
            "max_prompt_tokens": max_prompt_tokens,
            "max_new_tokens": max_new_tokens,
            "cut_answers": cut_answers,
            "batch_size": batch_size,
            "seed": seed,
        }
        if own:
            asked_ids = json.dumps([each.ids for each in own]).encode()
            settings["asked"] = hashlib.blake2b(asked_ids, digest_size=16).hexdigest()

        written = Written(output, settings, rows)
        known, already, pace = set(map(text_of, written.rows)), len(written.rows), Pace(at_once=False)
        while not written.done:
            drawn = 2 * (seed * 1_000_003 + written.batches)  # a seed of its own for every batch, and for each half
            part = own[written.batches * batch_size :][:batch_size]
            asked, cut = (part, 0) if part else write_prompts(base, turn, asking, batch_size, drawn)
            answers = write_answers(base, asked, answering, drawn + 1) if asked else ()
            faults = [
                (row, why_not(row, ended or cut_answers, known, kept_out, own=bool(part))) for row, ended in answers
            ]
            kept = [row for row, fault in faults if not fault][: None if part else rows - written.free]
            dropped = Counter({"the prompt did not end": cut}) + Counter(fault for _, fault in faults if fault)
            written.add(kept, dropped, free=not part)
            _check_hope(written, len(own), batch_size)
            if (new := len(written.rows) - already) and pace.due():
                wanted = rows + len(own)
                left = pace.left(new, wanted - already)
                print(f"{len(written.rows):,} of {wanted:,} rows; {left}", file=sys.stderr, flush=True)
        if not written.rows:
            raise UserError(
                f"no row could be kept ({reasons(written.dropped)}); {_remedy(written.dropped)}, or give other "
                "--prompts"
            )
        if top_k and not _known(output, top_k):
            _write_likeliest(base, written.rows, output, top_k, batch_size)
        page = output.with_suffix(".md")
        write_text(page, "\n".join(_page(written.rows, written.dropped, policy.model)) + "\n")
        print(f"{len(written.rows):,} rows in {output}; dropped: {reasons(written.dropped)}; {page} shows some")


def _check_hope(written: Written, given: int, batch_size: int) -> None:
    """Refuse to go on where next to nothing of what the base wrote from nothing could be kept.

    Args:
        written: All so far.
        given: How many prompts are the user's.
        batch_size: Rows of a batch.

    Raises:
        UserError: So it is, and what most of it was dropped for.
    """
    free = (written.batches - -(-given // batch_size)) * batch_size
    if free >= _HOPELESS * batch_size and written.free * _HOPELESS < free and not written.done:
        raise UserError(
            f"of {free:,} rows from nothing {written.free} could be kept ({reasons(written.dropped_free)}); "
            f"{_remedy(written.dropped_free)}, or give {'--rows 0' if given else '--prompts'}"
        )


def _warn_of_end(base: Policy, turn: Turn) -> None:
    """Say so where what ends a user's words is no token of its own."""
    if turn.after and turn.after[0] not in special_ids(base.tokenizer):
        end = str(base.tokenizer.decode(turn.after[:1]))
        print(
            f"warning: the chat template ends a user's words with {end!r}, which may stand in them too; what the base "
            "writes is cut at the first",
            file=sys.stderr,
        )


def _write_likeliest(base: Policy, rows: Sequence[Rehearsed], output: Path, top_k: int, batch_size: int) -> None:
    """Write the likeliest tokens beside the text."""
    import torch
    from safetensors.torch import save

    from lsemrl.modules.rehearsing import likeliest

    parts, pace = [], Pace(at_once=False)
    for at in range(0, len(rows), batch_size):
        parts.append(likeliest(base, rows[at : at + batch_size], top_k))
        if pace.due():
            done = min(at + batch_size, len(rows))
            left = pace.left(done, len(rows))
            print(f"likeliest tokens of {done:,} of {len(rows):,} rows; {left}", file=sys.stderr)
    found = {name: torch.cat([part[name] for part in parts]) for name in ("ids", "logprobs")}
    write_bytes(likeliest_path(output), save(found, {"text": digest_of(output)}))


def _known(output: Path, top_k: int) -> bool:
    """Whether the likeliest tokens of this very text lie beside it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(likeliest_path(output), "pt") as kept:
            same = kept.metadata() == {"text": digest_of(output)}
            return bool(same and kept.get_slice("ids").get_shape()[1:] == [top_k])
    except (OSError, SafetensorError):
        return False


def _lines(path: Path) -> list[str]:
    """The lines of a file of prompts, without those that are empty.

    Raises:
        UserError: It cannot be read, or holds rows and not lines.
    """
    if format_of(path) in FORMATS:
        raise UserError(
            f"--prompts is {str(path)!r}, but a file of prompts is plain text, one a line; have a data module read "
            "rows, in a configuration (prompts: {class_path: lsemrl.data.instruction.InstructionData, …})"
        )
    try:
        return [line.strip() for line in read_lines(path) if line.strip()]
    except Unreadable as reason:
        raise UserError(f"--prompts is {str(path)!r}, which cannot be read ({reason}); name another file") from None


def _remedy(dropped: Counter[str]) -> str:
    """What to do about the most frequent reason."""
    (reason, _), *_ = [*dropped.most_common(1), ("", 0)]
    return _REMEDIES.get(reason, "name another model")


def _page(rows: Sequence[Rehearsed], dropped: Counter[str], model: str) -> Iterator[str]:
    lengths = sorted(len(row.answer_ids) for row in rows)
    scripts = Counter(next(iter(scripts_of(row.prompt, row.response)), "none") for row in rows)
    shares = ", ".join(f"{count / len(rows):.1%} {script}" for script, count in scripts.most_common())
    yield f"# What {markdown(name_only(model))} wrote by itself"
    yield ""
    yield f"{len(rows):,} rows kept; dropped: {reasons(dropped)}."
    yield f"Answers have {lengths[0]} to {lengths[-1]} tokens, half of them up to {median_low(lengths)}."
    yield f"By the script of most letters: {shares}."
    yield ""
    yield "| prompt | answer |"
    yield "|---|---|"
    for row in evenly(rows, _SHOWN):
        yield f"| {markdown(row.prompt)} | {markdown(row.response)} |"
