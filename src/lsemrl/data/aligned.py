"""Text files of which line n of one answers line n of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lsemrl.data.rows import Row, lines_of
from lsemrl.types import UserError


def read_aligned(files: Mapping[str, str]) -> Iterator[Row]:
    """The lines of files, side by side.

    Args:
        files: By the column that each is. Places are those of the first.

    Raises:
        UserError: One cannot be read, or has more lines than another; blank ones at its end do not count.
    """
    texts = {path: lines_of(path) for path in files.values()}
    shortest = min(texts, key=lambda path: len(texts[path]))
    least = len(texts[shortest])
    for path, own in texts.items():
        if any(line.strip() for line in own[least:]):
            raise UserError(
                f"{path}:{least + 1}: no line of {shortest!r} answers this one ({len(own)} lines and "
                f"{least}), so that some before it may answer others; give files whose lines answer each other"
            )
    paths = list(files.values())
    for line, said in enumerate(zip(*(texts[path][:least] for path in paths), strict=True), start=1):
        yield Row(file=paths[0], line=line, raw="\t".join(said), columns=dict(zip(files, said, strict=True)))
