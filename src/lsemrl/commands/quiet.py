"""What libraries say to themselves is left out; that they take their time is not."""

from __future__ import annotations

import sys
import warnings

from lsemrl.foreign import visible
from lsemrl.runs import is_rank_zero


def loading(what: str) -> None:
    """Say that something happens, before the import of libraries that takes seconds."""
    if is_rank_zero():
        print(visible(f"loading {what}"), file=sys.stderr, flush=True)


def quiet() -> None:
    """Leave out what transformers says of how we call it, and its bars of progress."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
