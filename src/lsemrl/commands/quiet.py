"""What libraries say to themselves is left out."""

from __future__ import annotations

import warnings


def quiet() -> None:
    """Leave out what transformers says of how we call it, and its bars of progress."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
