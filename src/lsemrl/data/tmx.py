"""Translation memories: TMX, read as it comes, with nothing in it that stands for something else.

A unit is a row, and its languages are its columns, by the tags that the file has; where a language comes twice, its
texts are a list. What editors put between words (bpt, ept, it, ph, ut) is left out, what they mark (hi) is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn
from xml.parsers import expat

from lsemrl.data.rows import Row, numbered, pieces_of
from lsemrl.layouts import name_among
from lsemrl.types import UserError

TMX = ".tmx"
_CODES = {"bpt", "ept", "it", "ph", "ut"}
_DEEPEST = 100


def read_tmx(path: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """The units of a file.

    Args:
        path: A .tmx file, packed or not, in any encoding that it declares.
        columns: What is asked for, which also names a language by another of its tags (en: en-US); None for all of it
            as the file has it.

    Raises:
        UserError: It is no XML, or declares entities.
    """
    reader = _Reader(path, columns)
    for piece in pieces_of(path):
        yield from reader.read(piece, last=False)
    yield from reader.read(b"", last=True)


class _Reader:
    def __init__(self, path: str, columns: Sequence[str] | None) -> None:
        self._path, self._columns = path, columns
        self._rows: list[Row] = []
        self._names: dict[str, str] = {}
        self._open: list[str] = []
        self._line = 0
        self._unit: dict[str, list[str]] = {}
        self._language, self._text, self._fault = "", "", ""
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._said
        parser.EntityDeclHandler = self._entity
        parser.SkippedEntityHandler = self._unknown

    def read(self, piece: bytes, *, last: bool) -> list[Row]:
        """The rows that end in `piece`."""
        try:
            self._parser.Parse(piece, last)
        except (expat.ExpatError, LookupError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).partition(":")[0]
            self._refuse(f"is not XML from here on ({reason}); mend the file, or fetch it again")
        done, self._rows = self._rows, []
        return done

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"{self._path}:{self._parser.CurrentLineNumber}: {what}")

    def _entity(self, name: str, *_: object) -> None:
        self._refuse(f"declares the entity {name!r}, which may stand for anything; write out what it stands for")

    def _unknown(self, name: str, *_: object) -> None:
        self._fault = f"has the entity {name!r}, which nothing declares"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._open) > _DEEPEST:
            self._refuse("is nested too deep for a TMX file; mend the file")
        if not self._open and tag != "tmx":
            self._refuse(f"begins with {tag!r}, not with 'tmx'; name a TMX file")
        self._open.append(tag)
        if tag == "tu":
            self._line, self._unit, self._fault = self._parser.CurrentLineNumber, {}, ""
        elif tag == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang") or ""
        elif tag == "seg":
            self._text = ""

    def _said(self, text: str) -> None:
        if "seg" in self._open and not _CODES.intersection(self._open):
            self._text += text

    def _end(self, tag: str) -> None:
        self._open.pop()
        if tag == "seg":
            self._unit.setdefault(self._language, []).append(self._text)
        elif tag == "tu":
            unit: dict[str, list[str]] = {}
            for own, said in self._unit.items():
                name = self._name(own)
                name = own if name in self._unit else name  # what is asked for is there itself
                unit.setdefault(name, []).extend(said)
            columns = {name: said[0] if len(said) == 1 else said for name, said in unit.items()}
            self._rows.append(numbered(self._path, self._line, columns, self._fault))

    def _name(self, tag: str) -> str:
        """The column that is asked for where `tag` is its language, and its variant if it names one; else the tag."""
        if self._columns is None or tag in self._columns:
            return tag
        if tag not in self._names:
            try:
                asked = name_among(self._columns, tag, self._path)
            except UserError:  # a language that is not asked for
                asked = tag
            self._names[tag] = asked if _variant(asked) in ([], _variant(tag)) else tag
        return self._names[tag]


def _variant(tag: str) -> list[str]:
    """What a tag has beside the language: script, region."""
    return tag.casefold().replace("_", "-").split("-")[1:]
