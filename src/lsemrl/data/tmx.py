"""Translation memories: TMX, read as it comes, with nothing in it that stands for something else.

A unit is a row, and its languages are its columns, by the tags that the file has; where a language comes twice, its
texts are a list. What editors put between words (bpt, ept, it, ph, ut) is left out, what they mark (hi) is kept.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from lsemrl.data.rows import Row, numbered, pieces_of
from lsemrl.layouts import name_among
from lsemrl.types import UserError

TMX = ".tmx"
_CODES = {"bpt", "ept", "it", "ph", "ut"}
_DEEPEST = 100
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*\sencoding\s*=\s*["']([\w.-]+)""")


def read_tmx(path: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """The units of a file.

    Args:
        path: A .tmx file, packed or not, in any encoding that it declares.
        columns: What is asked for, also by another tag of the language (en for en-US) where the file has one such;
            None for all of it as the file has it.

    Raises:
        UserError: It is no XML, or declares entities; or a column is none of its languages, or could be several.
    """
    reader = _Reader(path)
    for piece in pieces_of(path):
        reader.read(piece, last=False)
    reader.read(b"", last=True)
    tags = reader.tags.values()
    names = {name_among(tags, column, path): column for column in columns or ()} if reader.units else {}
    for unit in reader.units:
        columns_of_unit = {names.get(tag, tag): said[0] if len(said) == 1 else said for tag, said in unit.texts.items()}
        yield numbered(path, unit.line, columns_of_unit, unit.fault)


@dataclass(kw_only=True)
class _Unit:
    line: int
    texts: dict[str, list[str]] = field(default_factory=dict)
    fault: str = ""


class _Reader:
    def __init__(self, path: str) -> None:
        self.units: list[_Unit] = []
        self.tags: dict[str, str] = {}
        self._path = path
        self._open: list[str] = []
        self._unit = _Unit(line=0)
        self._language, self._text = "", ""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._begun = False
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._said
        parser.EntityDeclHandler = self._entity
        parser.SkippedEntityHandler = self._unknown

    def read(self, piece: bytes, *, last: bool) -> None:
        """Go on with `piece`: units that end in it are whole."""
        try:
            if not self._begun:
                self._decoder, self._begun = _decoder_of(piece), True
            if self._decoder is None:
                self._parser.Parse(piece, last)
            else:
                for line in piece.splitlines(keepends=True):  # so that a broken one is told by its number
                    self._parser.Parse(self._decoder.decode(line), False)
                self._parser.Parse(self._decoder.decode(b"", last), last)
        except (expat.ExpatError, LookupError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).partition(":")[0]
            self._refuse(f"is not XML from here on ({reason}); mend the file, or fetch it again")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"{self._path}:{self._parser.CurrentLineNumber}: {what}")

    def _entity(self, name: str, *_: object) -> None:
        self._refuse(f"declares the entity {name!r}, which may stand for anything; write out what it stands for")

    def _unknown(self, name: str, *_: object) -> None:
        self._unit.fault = f"has the entity {name!r}, which nothing declares"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._open) > _DEEPEST:
            self._refuse("is nested too deep for a TMX file; mend the file")
        if not self._open and tag != "tmx":
            self._refuse(f"begins with {tag!r}, not with 'tmx'; name a TMX file")
        self._open.append(tag)
        if tag == "tu":
            self._unit = _Unit(line=self._parser.CurrentLineNumber)
        elif tag == "tuv":
            own = attributes.get("xml:lang") or attributes.get("lang") or ""
            self._language = self.tags.setdefault(own.casefold().replace("_", "-"), own)  # as it is written first
        elif tag == "seg":
            self._text = ""

    def _said(self, text: str) -> None:
        if "seg" in self._open and not _CODES.intersection(self._open):
            self._text += text

    def _end(self, tag: str) -> None:
        self._open.pop()
        if tag == "seg":
            self._unit.texts.setdefault(self._language, []).append(self._text)
        elif tag == "tu":
            self.units.append(self._unit)


def _decoder_of(piece: bytes) -> codecs.IncrementalDecoder | None:
    """What decodes a file of this beginning where it declares an encoding of several bytes, which expat knows none of.

    It tells UTF-8 and UTF-16 by itself, whatever is declared, and has single bytes of Python.
    """
    declared = _DECLARED.match(piece)
    name = declared[1].decode() if declared else "utf-8"
    try:
        single = len(bytes(range(256)).decode(name, "replace")) == 256
    except LookupError:  # nothing that Python knows, or no encoding of text
        return None
    return None if single or codecs.lookup(name).name.startswith("utf") else codecs.getincrementaldecoder(name)()
