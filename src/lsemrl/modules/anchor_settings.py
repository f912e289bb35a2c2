"""How a policy is held to its base: settings, which are read before what holds it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsemrl.errors import UserError
from lsemrl.finite import check_finite
from lsemrl.reading import user_path


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """How strongly, and where, the policy is held to its base."""

    path: str
    """The rehearsal text: a file that `lsemrl rehearse` wrote."""
    coefficient: float = 0.2
    """What the divergence counts beside the task's loss; 0 reads and costs nothing."""
    rows: int = 12
    """Rows beside each optimizer step, over all ranks."""
    held: Literal["answer", "all"] = "answer"
    """Whether the base's answers are held, or the prompts that it wrote too, with what the template puts between."""
    top_k: int = 0
    """Hold the base's so many likeliest tokens, as they were kept with the text, and the others as one mass; 0 holds
    the whole vocabulary, for which the base is computed beside the policy."""

    def __post_init__(self) -> None:
        check_finite(self, "model.anchor")
        for name, least in (("coefficient", 0), ("rows", 1), ("top_k", 0)):
            if getattr(self, name) < least:
                raise UserError(f"model.anchor.{name} is {getattr(self, name)}; it must be {least} or more")
        if self.top_k and self.held == "all":
            raise UserError(
                "model.anchor.held is all and top_k is above 0, but only answers have it kept; set top_k to 0"
            )

    def check_files(self) -> None:
        """Refuse text that is not there, without reading one that is.

        Raises:
            UserError: `path` names no file.
        """
        if self.coefficient and not user_path(self.path).is_file():
            raise UserError(
                f"model.anchor.path is {self.path!r}, and there is no such file; write it by lsemrl rehearse --output "
                f"{self.path}, or train without: --model.anchor null"
            )
