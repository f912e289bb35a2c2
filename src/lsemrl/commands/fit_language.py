"""`lsemrl fit-language`: tells a language from those in its script, fitted on the user's own texts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsemrl.data.text import OnBadRow, read_texts
from lsemrl.errors import UserError
from lsemrl.files import fill_folder, is_free, replace_folder, try_folder, write_text
from lsemrl.identification.fit import IdentifierFit, Text
from lsemrl.identification.fit import fit as fit_identifier
from lsemrl.identification.ngrams import ABOUT, WEIGHTS
from lsemrl.identification.page import page
from lsemrl.json_records import UNREADABLE
from lsemrl.languages import usual_profile
from lsemrl.reading import read_json

PAGE = "identifier.md"
_FILES = {ABOUT, WEIGHTS, PAGE}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Where texts of one language are."""

    path: str
    """A .txt file with one text a line, or a .jsonl, .json, .csv, .tsv or .parquet file."""
    column: str = "text"
    """The column of the text, where the file has columns; dots lead into nested ones (translation.pcm)."""
    header: bool = True
    """Whether the first line of a CSV or TSV file names its columns; else they are called 1 and 2."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row without a text, or leave it out and say how many."""


def fit_language(
    *,
    to: str,
    texts: dict[str, Texts],
    output: Path = Path("runs/language"),
    fit: IdentifierFit = IdentifierFit(),
) -> None:
    """Fit an identifier that tells a language from others in its script.

    Writes to `output`: identifier.json and weights.safetensors, which a profile names (language: {code: pcm,
    identifier: runs/language}), and identifier.md, which says what it is worth.

    Args:
        to: The language that is to be told, by its code; among `texts`.
        texts: Where texts of each language are, by its code: of the language itself, of the one that is translated
            from, and of any other that it could be taken for. Two columns of one file are kept together where some
            are held out.
        output: Folder to write to.
        fit: How to fit.

    Raises:
        UserError: A setting that cannot be, texts that cannot be read or are too few, or a folder that cannot be
            written, holds the identifier of another language, or one that cannot be replaced.
    """
    if to not in texts:
        raise UserError(f"texts has no {to!r}, which is what --to is; name where its texts are")
    if not is_free(output, _FILES):
        raise UserError(f"output is {str(output)!r}, which holds something else; name a new folder")
    profile = usual_profile(to)
    code = profile.code if profile else to
    if code != to and code in texts:
        raise UserError(f"texts has {to!r} and {code!r}, which are one language; name its texts once")
    its = _language_of(output)
    if its not in (None, code):
        raise UserError(f"output is {str(output)!r}, which holds an identifier of {its!r}; name another --output")
    place = output.resolve()
    if not is_free(output) and (Path.cwd().is_relative_to(place) or place.is_mount()):  # the whole folder is replaced
        raise UserError(
            f"output is {str(output)!r}, which holds an identifier already, and cannot be replaced where a shell "
            "stands in it or a disk is mounted; name another --output, or empty it"
        )
    try_folder(output.parent, "output")
    begun = time.monotonic()
    rows = {
        code if name == to else name: [
            Text(place, said)
            for place, said in read_texts(each.path, each.column, header=each.header, on_bad_row=each.on_bad_row)
        ]
        for name, each in texts.items()
    }
    found = fit_identifier(code, rows, fit)

    def fill(folder: Path) -> None:
        found.save(folder)
        write_text(folder / PAGE, page(found))

    put = fill_folder if is_free(output) else replace_folder
    put(output, fill, "output")
    longest = found.about.figures["rows"][3]
    told = (
        ("" if longest[name] is None else f"{longest[name]:.1%} of {which}; ")
        for name, which in (("accuracy", "long held-out texts are told right"), ("passed", "another's pass at most"))
    )
    print(f"{''.join(told)}fitted in {time.monotonic() - begun:.0f} s. What it is worth: {output / PAGE}")
    print(f"Name it where a language is named:\n  language: {{code: {code}, identifier: {output}}}")


def _language_of(folder: Path) -> Any:
    """What the identifier in `folder` tells; None if there is none that can be read."""
    try:
        return read_json(folder / ABOUT)["language"]
    except UNREADABLE:
        return None
