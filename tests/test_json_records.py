"""Records as JSON: what is written is what is read, by the kinds of the fields."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from lsemrl.json_records import read_record, write_json
from lsemrl.types import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    value: float


@dataclass(frozen=True, kw_only=True)
class Outer:
    version: int = 1
    name: str
    share: float | None
    facts: dict[str, str | float]
    parts: tuple[Inner, ...]
    rows: dict[str, tuple[float, ...]]


SOUND = Outer(
    name="a",
    share=None,
    facts={"tokens": 32, "rate": 0.5, "dtype": "float32"},
    parts=(Inner(value=1.0), Inner(value=math.inf)),
    rows={"chrf": (0.0, 1.0)},
)


def read(path: Path) -> Outer:
    return read_record(Outer, path, 1, "make it again")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", asdict(SOUND))
    found = read(tmp_path / "a.json")
    assert found == SOUND
    assert type(found.facts["tokens"]) is int  # shown as 32, not as 32.0
    assert "Infinity" not in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 3}, "a.name is '3'"),
        ({"share": "half"}, "a.share is 'half'"),
        ({"facts": []}, "a.facts is"),
        ({"parts": [{"value": True}]}, "a.parts.value is 'True'"),
        ({"rows": {"chrf": [None]}}, "a.rows.chrf is 'None'"),
        ({"other": 1}, "a.other is '1'"),
        ({"version": 2}, "is of version 2, this lsemrl reads up to 1"),
    ],
)
def test_what_is_of_another_kind_is_told(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**json.loads(json.dumps(asdict(SOUND))), **change}))
    with pytest.raises(UserError, match=says):
        read(path)
