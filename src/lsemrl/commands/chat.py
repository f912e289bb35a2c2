"""`lsemrl chat`: a line in, an answer out as its tokens come."""

from __future__ import annotations

import sys
from pathlib import Path

from lsemrl.commands.generate import asked, check_new_tokens, typed
from lsemrl.commands.named import Model, find, tell
from lsemrl.commands.quiet import loading, quiet
from lsemrl.errors import UserError

_HOW = (
    "a line and Enter, each by itself: nothing before it is seen; `= REFERENCE` scores the answer before; "
    "Ctrl-C stops an answer, Ctrl-D or an empty line ends"
)


def chat(
    run: str,
    *,
    side_by_side: bool = False,
    sample: bool = False,
    seed: int = 1,
    max_new_tokens: int | None = None,
    adapter_scale: float = 1.0,
    root: Path = Path("runs"),
) -> None:
    """Each line is answered by itself, with nothing before it in view; `= REFERENCE` scores the last answer.

    Args:
        run: A finished run, or one of its adapters, such as its best/, whose task a line is the input of; "newest"; or
            another adapter, an exported folder, a model, a hub id or "micro", to which a line is the whole instruction.
        side_by_side: The base answers too: the model without the adapter, or what full fine-tuning started from.
        sample: Draw as the run drew (without a run, or a run of SFT: temperature 0.8, top-p 0.9), rather than greedily.
        seed: Of --sample; one higher with every line.
        max_new_tokens: Longest answer; by default the run's own, without a run 256.
        adapter_scale: How much of the adapter to take, in [0, 1]: less gives back what was forgotten.
        root: Where "newest" is looked for.
    """
    check_new_tokens(max_new_tokens)
    found = find(run, root)
    tell(run, found)
    if side_by_side and isinstance(found, Model) and not found.adapter:
        raise UserError(f"--side-by-side: RUN is {run!r}, a model that names no base; name a run or an adapter")
    if sys.stdout is None:
        raise UserError("standard output is closed, and answers have nowhere to go; open it")
    at_prompt = sys.stdin is not None and sys.stdin.isatty()
    texts = asked(_HOW) if at_prompt else typed()
    loading(run)
    from lsemrl.commands.conversation import Conversation  # torch, for which words that cannot be do not wait
    from lsemrl.commands.trained import take_up

    quiet()
    Conversation(
        take_up(found, max_new_tokens, adapter_scale),
        side_by_side=side_by_side,
        greedy=not sample,
        seed=seed,
        out=sys.stdout,
        at_prompt=at_prompt,
    ).go(texts)
