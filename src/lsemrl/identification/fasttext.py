"""Language identification models of fastText, such as GlotLID and lid.176, where the user has one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError
from lsemrl.identification.base import Identifier
from lsemrl.identification.windows import Told, raw_windows
from lsemrl.reading import Unreadable, check_file

_LABEL = "__label__"
_HALF = 0.5


class FastTextIdentifier(Identifier):
    """A model that was trained for many languages.

    What it finds likelier than all others together is decided; a name that it spreads over dozens is not.

    Args:
        path: The file, .bin or .ftz. fastText's own code reads it: take it from where you trust.
        language: The tag of what is to be told.

    Raises:
        UserError: The package or the file is missing, the file is none of fastText's, or none of its labels is of the
            language.
    """

    def __init__(self, path: Path, language: str) -> None:
        super().__init__(language, _HALF, f"fasttext-{path.name}")
        self._path = path
        try:
            import fasttext
        except ImportError:
            raise UserError(
                f"language.identifier is {str(path)!r}, which the package fasttext reads; install lsemrl[fasttext]"
            ) from None
        try:
            check_file(path)
            self._model: Any = fasttext.load_model(str(path))
        except (Unreadable, ValueError) as error:
            raise UserError(
                f"language.identifier is {str(path)!r}, which cannot be read ({error}); name a model of fastText"
            ) from error
        labels: list[str] = list(self._model.get_labels())
        self._own = {label for label in labels if _is(label.removeprefix(_LABEL), language)}
        if not self._own:
            raise UserError(
                f"language.identifier is {str(path)!r}, and none of its {len(labels):,} labels is of {language!r}; fit "
                "an identifier with fit-language"
            )

    @functools.cached_property
    def identity(self) -> str:
        """See `Identifier`; models are up to gigabytes, so that one is read when it is first asked for."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def cut(self, text: str) -> list[tuple[str, int]]:
        """See `Identifier`; texts as they stand, which such models are trained on."""
        return raw_windows(text)

    def told(self, texts: Sequence[str]) -> list[Told]:
        """See `Identifier`."""
        return [self._told(text) for text in texts]

    def _told(self, text: str) -> Told:
        labels, likely = self._model.predict(text, k=-1)
        by_label = dict(zip(labels, map(float, likely), strict=True))
        own = min(sum(by_label.get(label, 0.0) for label in self._own), 1.0)
        other = max((value for label, value in by_label.items() if label not in self._own), default=0.0)
        return Told(share=own, decided=own >= _HALF or other >= _HALF)


def _is(label: str, language: str) -> bool:
    """Whether a label, such as zh, zho or zho_Hant, is of a language; scripts count where both name one."""
    import langcodes

    try:
        one, other = (langcodes.Language.get(tag).prefer_macrolanguage() for tag in (label, language))
    except ValueError:
        return False
    scripts = {one.script, other.script} - {None}
    return one.language == other.language and len(scripts) < 2
