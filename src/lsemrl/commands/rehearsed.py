"""What `lsemrl rehearse` has written so far: rows in a file, and beside it what writes them and how far it has come."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lsemrl.data.rehearsal import Rehearsed, identity_path, likeliest_path, read_rehearsal
from lsemrl.files import append, told
from lsemrl.json_records import UNREADABLE, write_json
from lsemrl.reading import read_json
from lsemrl.types import UserError

_NO_MATTER = ("model", "lsemrl")
"""Settings that are told and not compared: the fingerprint says what the model is, wherever it lies."""
_NOTHING: Mapping[str, Any] = {"batches": 0, "free": 0, "dropped": {}, "dropped_free": {}}


class Written:
    """Rows that are written batch by batch: answers to the user's prompts, then what the base writes from nothing.

    Attributes:
        rows: Those that are kept.
        batches: How many were written, whatever was kept of them.
        free: How many of the rows were written from nothing.
        dropped: Why others were not kept.
        dropped_free: Likewise, of those from nothing alone.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], free: int) -> None:
        """Go on from what an earlier call wrote; what is beyond its last whole batch is cut off.

        Args:
            output: The file.
            settings: What writes them, the user's `prompts` and the `batch_size` among it.
            free: Rows from nothing that are asked for.

        Raises:
            UserError: There is something else, or other settings wrote it.
        """
        self._output, self._settings, self._asked_free = output, settings, free
        self._hash = hashlib.sha256()
        self._stand(_NOTHING)
        if output.exists() or identity_path(output).exists():
            self._take_up()
        else:
            for other in (likeliest_path(output), output.with_suffix(".md")):
                if other.exists():
                    raise UserError(f"--output is {str(output)!r}, for which {other} would be replaced; name another")
        self._note()
        self.rows = read_rehearsal(output) if self._size() else []

    @property
    def done(self) -> bool:
        """Whether all the user's prompts are answered, and as many rows from nothing there as are asked for."""
        answered = self.batches * self._settings["batch_size"] >= len(self._settings["prompts"])
        return bool(answered and self.free >= self._asked_free)

    def add(self, rows: Sequence[Rehearsed], dropped: Counter[str], *, free: bool) -> None:
        """Keep what came of a batch.

        Args:
            rows: Of it.
            dropped: Why others were not kept.
            free: Whether it was written from nothing.

        Raises:
            UserError: It cannot be written.
        """
        lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        append(self._output, lines)
        self._hash.update(lines.encode())
        self.rows += rows
        self.batches += 1
        self.dropped += dropped
        if free:
            self.free += len(rows)
            self.dropped_free += dropped
        self._note()

    def _stand(self, progress: Mapping[str, Any]) -> None:
        self.batches, self.free = progress["batches"], progress["free"]
        self.dropped, self.dropped_free = Counter(progress["dropped"]), Counter(progress["dropped_free"])

    def _size(self) -> int:
        return self._output.stat().st_size if self._output.exists() else 0

    def _note(self) -> None:
        progress = {name: getattr(self, name) for name in _NOTHING}
        progress |= {"bytes": self._size(), "digest": self._hash.hexdigest()}
        write_json(identity_path(self._output), {**self._settings, "progress": progress})

    def _take_up(self) -> None:
        output, beside = self._output, identity_path(self._output)
        try:
            found = read_json(beside)
            progress: dict[str, Any] = {"dropped_free": {}, **found.pop("progress")}  # of before it was counted
            asked = json.loads(json.dumps(self._settings))
            odd = [name for name in {**asked, **found} if name not in _NO_MATTER and asked.get(name) != found.get(name)]
            counts = (
                *(progress[name] for name in ("batches", "free", "bytes")),
                *(count for name in ("dropped", "dropped_free") for count in progress[name].values()),
            )
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError
            wrote = progress["bytes"]
            there = output.read_bytes() if output.exists() else b""  # of one that was killed before its first batch
            self._hash = hashlib.sha256(there[:wrote])
            same = len(there) >= wrote and progress.get("digest", self._hash.hexdigest()) == self._hash.hexdigest()
        except UNREADABLE:
            raise UserError(
                f"--output is {str(output)!r}, and {str(beside)!r}, which says how it was written, cannot be read; "
                "name another"
            ) from None
        if odd and wrote:
            what = {"fingerprint": "model", "asked": "prompts"}.get(odd[0], odd[0])
            raise UserError(f"--output is {str(output)!r}, which was written with other {what}; name another file")
        self._stand(progress)
        if not same or (len(there) > wrote and self.done):
            raise UserError(
                f"--output is {str(output)!r}, which was changed since it was written; restore it, or name another"
            )
        if len(there) > wrote:
            with told(output):
                os.truncate(output, wrote)
        if odd:  # where nothing was written yet, settings may change
            self._stand(_NOTHING)
