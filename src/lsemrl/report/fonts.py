"""Fonts for labels in whatever script, which matplotlib falls back on letter by letter."""

from __future__ import annotations

import functools
import logging

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

log = logging.getLogger(__name__)
_OWN, _BOXES = "DejaVu Sans", "Last Resort"
"""The family that matplotlib brings, and one that has a box for every letter."""


def families(text: str) -> list[str]:
    """The family that has most letters, and of those on this machine what has the others of `text`."""
    found = [_OWN]
    lacking = {letter for letter in text if letter.isprintable()} - _letters(font_manager.findfont(_OWN))
    for name, file in _others() if lacking else ():
        if lacking & (own := _letters(file)):
            found.append(name)
            lacking -= own
    if lacking:
        some = "".join(sorted(lacking)[:10])
        log.warning("no font here has %s, which labels of plots are written in; install one, such as Noto's", some)
    return found


def _others() -> list[tuple[str, str]]:
    """Families of this machine and their files."""
    fonts = font_manager.fontManager.ttflist
    return sorted((font.name, font.fname) for font in fonts if not font.name.startswith(_BOXES))


@functools.lru_cache(maxsize=512)
def _letters(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):  # a damaged one is none
        return frozenset()
