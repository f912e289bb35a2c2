"""Pairs of English and another language from LibreOffice's help, aligned by the ids of its paragraphs (MPL-2.0).

apt-get download libreoffice-help-en-us libreoffice-help-dz
for package in libreoffice-help-*.deb; do dpkg-deb -x $package help; done
python benchmarks/help_pairs.py help dz --words 20 > en_dz.jsonl
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from pathlib import Path

import regex

from lsemrl.languages import language

_TEXTS = "usr/share/libreoffice/help"
# The pages are made by one style sheet, so that none of these lies within another.
_PARAGRAPH = regex.compile(r'<(p|h[1-6]|li)\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', regex.DOTALL)
_TAG = regex.compile(r"<[^>]+>")


def main() -> None:
    """Write a row for each English text of three words or more, once, that is translated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the packages were unpacked")
    parser.add_argument("code", help="of the language")
    parser.add_argument("--words", type=int, default=0, help="leave out English texts of more")
    asked = parser.parse_args()
    [script] = language(asked.code).scripts
    own, letter = regex.compile(rf"\p{{Script={script}}}"), regex.compile(rf"\p{{L}}|\p{{Script={script}}}")
    seen = set[str]()
    for path in sorted((asked.folder / _TEXTS / asked.code / "text").rglob("*.html")):
        name = path.relative_to(asked.folder / _TEXTS / asked.code)
        english = texts(asked.folder / _TEXTS / "en-US" / name)
        for id_, text in texts(path).items():
            source = english.get(id_, "")
            count = len(source.split())
            if source in seen or source == text or count < 3 or (asked.words and count > asked.words):
                continue
            # What is not translated stands there in English.
            if 0 < 2 * len(own.findall(text)) >= len(letter.findall(text)):
                seen.add(source)
                row = {"id": f"{name.relative_to('text')}#{id_}", "en": source, asked.code: text}
                sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def texts(path: Path) -> dict[str, str]:
    """The paragraphs of a page, by their ids; none of one that is not there."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    found = dict[str, str]()
    for _, id_, inner in _PARAGRAPH.findall(page):
        if text := " ".join(html.unescape(_TAG.sub("", inner)).split()):
            found.setdefault(id_, text)
    return found


if __name__ == "__main__":
    main()
