"""`lsemrl rehearse`: text that the base writes by itself, to hold a policy to what it knew (see `modules.anchor`)."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lsemrl import __version__
from lsemrl.commands.quiet import loading, quiet
from lsemrl.data.base import TaskData
from lsemrl.data.rehearsal import (
    Rehearsed,
    identity_path,
    likeliest_path,
    read_rehearsal,
    reasons,
    text_of,
    why_not,
)
from lsemrl.data.survey import scripts_of
from lsemrl.durations import Pace
from lsemrl.files import append, told, try_folder, write_bytes, write_text
from lsemrl.finite import check_seed
from lsemrl.foreign import markdown
from lsemrl.json_records import write_json
from lsemrl.local_paths import name_only
from lsemrl.locks import held
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.reading import Unreadable, read_json, read_lines
from lsemrl.types import UserError

_HOPELESS = 20
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
        prompts: Prompts of the user's own, which are answered besides: a file of them, one a line, or in a
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
    for name, value, least in (("rows", rows, 0), ("batch-size", batch_size, 1), ("top-k", top_k, 0)):
        if value < least:
            raise UserError(f"--{name} is {value}; give {least} or more")
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
        import torch
        from safetensors.torch import save

        from lsemrl.modules.policy import Policy
        from lsemrl.modules.rehearsing import given_prompts, likeliest, turn_of, write_answers, write_prompts

        quiet()
        base = Policy(policy)
        turn = turn_of(base)
        own = given_prompts(base, turn, given)
        if not rows and not own:
            raise UserError(
                f"--rows is 0 and --prompts is {str(prompts)!r}, which holds no prompts; ask for rows, or fill it"
            )
        base.load()
        base.to("cuda" if torch.cuda.is_available() else "cpu")
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
        progress = _taken_up(output, settings)
        kept = read_rehearsal(output) if progress["bytes"] else []
        dropped, known = Counter(progress["dropped"]), set(map(text_of, kept))
        asking = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_prompt_tokens)
        answering = replace(asking, max_new_tokens=max_new_tokens)
        wanted, already, pace = rows + len(own), len(kept), Pace(at_once=False)
        while (answered := progress["batches"] * batch_size) < len(own) or progress["free"] < rows:
            drawn = 2 * (seed * 1_000_003 + progress["batches"])  # a seed of its own for every batch, and for each half
            asked = part = own[answered : answered + batch_size]
            if not part:
                asked, cut = write_prompts(base, turn, asking, batch_size, drawn)
                dropped += Counter({"the prompt did not end": cut})  # which keeps no zeros
            new = []
            for row, ended in write_answers(base, asked, answering, drawn + 1) if asked else ():
                if reason := why_not(row, ended or cut_answers, known, kept_out):
                    dropped[reason] += 1
                elif part or progress["free"] < rows:
                    new.append(row)
                    progress["free"] += not part
            append(output, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in new))
            kept += new
            progress |= {"batches": progress["batches"] + 1, "dropped": dict(dropped), "bytes": output.stat().st_size}
            write_json(identity_path(output), {**settings, "progress": progress})
            if progress["batches"] == _HOPELESS and len(kept) < batch_size:
                raise UserError(
                    f"of {_HOPELESS * batch_size:,} rows {len(kept)} could be kept ({reasons(dropped)}); raise "
                    "--max-new-tokens, or give --prompts"
                )
            if len(kept) > already and pace.due():
                left = pace.left(len(kept) - already, wanted - already)
                print(f"{len(kept):,} of {wanted:,} rows; {left}", file=sys.stderr, flush=True)
        if not kept:
            raise UserError(
                f"no row could be kept ({reasons(dropped)}); raise --max-new-tokens, or give other --prompts"
            )
        if top_k:
            found = likeliest(base, kept, top_k, batch_size)
            write_bytes(likeliest_path(output), save(found, {"fingerprint": base.fingerprint}))
        page = output.with_suffix(".md")
        write_text(page, "\n".join(_page(kept, dropped, policy.model)) + "\n")
        print(f"{len(kept):,} rows in {output}; dropped: {reasons(dropped)}; {page} shows some")


def _lines(path: Path) -> list[str]:
    """The lines of a file of prompts, without those that are empty.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return [line.strip() for line in read_lines(path) if line.strip()]
    except Unreadable as reason:
        raise UserError(f"--prompts is {str(path)!r}, which cannot be read ({reason}); name another file") from None


def _taken_up(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """How far an earlier call came; what it wrote after its last whole batch is cut off."""
    begun: dict[str, Any] = {"batches": 0, "free": 0, "dropped": {}, "bytes": 0}
    beside = identity_path(output)
    if not output.exists() and not beside.exists():
        for other in (likeliest_path(output), output.with_suffix(".md")):
            if other.exists():
                raise UserError(f"--output is {str(output)!r}, for which {other} would be replaced; name another")
        return begun
    try:
        found = read_json(beside)
        progress: dict[str, Any] = found.pop("progress")
        same = found == json.loads(json.dumps(settings))
        whole = output.stat().st_size >= progress["bytes"]  # else cutting would fill it up with NULs
    except (Unreadable, OSError, ValueError, KeyError, AttributeError, TypeError):
        same, whole, progress = False, True, begun
    if not same:
        raise UserError(f"--output is {str(output)!r}, which was written with other settings; name another file")
    if not whole:
        raise UserError(
            f"--output is {str(output)!r}, which is shorter than it was written; restore it, or name another"
        )
    with told(output):
        os.truncate(output, progress["bytes"])
    return progress


def _page(rows: Sequence[Rehearsed], dropped: Counter[str], model: str) -> Iterator[str]:
    lengths = sorted(len(row.answer_ids) for row in rows)
    scripts = Counter(next(iter(scripts_of(row.prompt, row.response)), "none") for row in rows)
    shares = ", ".join(f"{count / len(rows):.1%} {script}" for script, count in scripts.most_common())
    yield f"# What {markdown(name_only(model))} wrote by itself"
    yield ""
    yield f"{len(rows):,} rows kept; dropped: {reasons(dropped)}."
    yield f"Answers have {lengths[0]} to {lengths[-1]} tokens, half of them up to {lengths[len(lengths) // 2]}."
    yield f"By the script of most letters: {shares}."
    yield ""
    yield "| prompt | answer |"
    yield "|---|---|"
    for row in rows[:: max(len(rows) // _SHOWN, 1)][:_SHOWN]:
        yield f"| {markdown(row.prompt)} | {markdown(row.response)} |"
