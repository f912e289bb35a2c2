"""What tells a language from others, whoever made it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lsemrl.identification.windows import Told, share, windows, words_of


class Identifier(ABC):
    """Tells one language from others.

    Args:
        language: The code of what it tells.
        threshold: The share of a text, in (0, 1], from which on it passes for the language.
        name: What signatures call it.
    """

    def __init__(self, language: str, threshold: float, name: str) -> None:
        self.language, self.threshold, self.name = language, threshold, name

    @property
    @abstractmethod
    def identity(self) -> str:
        """A hash of what it judges by, wherever that lies."""

    @abstractmethod
    def told(self, texts: Sequence[str]) -> list[Told]:
        """What it makes of each of some short texts, as `cut` gives them."""

    def cut(self, text: str) -> list[tuple[str, int]]:
        """The windows of a text, as `told` reads them, and the letters in each."""
        return [(window, len(window)) for window in map(" ".join, windows(words_of(text)))]

    def shares(self, texts: Sequence[str]) -> list[float | None]:
        """The share of each text that is in the language, in [0, 1]; None where that cannot be told.

        A text is judged window by window, so that a mixed one is a share. A window that could be of either language,
        as names are, counts for neither.
        """
        cut = [self.cut(text) for text in texts]
        told = iter(self.told([window for text in cut for window, _ in text]))
        return [share([next(told) for _ in text], [letters for _, letters in text]) for text in cut]
