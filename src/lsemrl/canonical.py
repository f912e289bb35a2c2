"""One form for texts that are one text: what scores, encoders and keys see, and nobody trains on or is shown.

Canonically equivalent texts differ in code points only (a vowel sign written whole or in its parts, marks in another
order). NFC gives them one form; it composes nothing that Unicode excludes from composition, as most of Tibetan is.
"""

from __future__ import annotations

import unicodedata

# Unicode deprecates these two vowel signs: they are their parts by name and look, and only by mistake recorded as a
# matter of compatibility, which cannot be mended there.
_DEPRECATED = {0x0F77: "\u0fb2\u0f71\u0f80", 0x0F79: "\u0fb3\u0f71\u0f80"}


def canonical(text: str) -> str:
    """`text` in NFC, and U+0F77 and U+0F79 in their parts; equal for canonically equivalent texts, and idempotent."""
    return unicodedata.normalize("NFC", text.translate(_DEPRECATED))
