"""Two arms' rows: read, paired, and the interval of what was won."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lsemrl.errors import UserError
from lsemrl.judging.comparison import Comparison, Judgement, Pair, pair_up, read_predictions, wilson


def test_wilson_by_hand() -> None:
    # p = 1/2, n = 4, z^2 = 3.8415: middle 1/2, half sqrt(z^2/4n + z^4/4n^2) / (1 + z^2/n)
    half = (3.8414588 / 16 + 3.8414588**2 / 64) ** 0.5 / (1 + 3.8414588 / 4)
    assert wilson(2, 4) == pytest.approx((0.5 - half, 0.5 + half))
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 2000), st.data())
def test_wilson_against_scipy(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def write(path: Path, *outputs: str, start: int = 0, **more: Any) -> Path:
    rows = [
        {"id": str(at), "source": f"源{at}", "output": output, "references": ["ref"], **more}
        for at, output in enumerate(outputs, start=start)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_are_matched_by_id(tmp_path: Path) -> None:
    first = read_predictions(write(tmp_path / "a", "a0", "a1", "a2"))
    second = read_predictions(write(tmp_path / "b", "b2", "b3", start=2))
    assert pair_up(first, second) == (Pair(id="2", source="源2", outputs=("a2", "b2"), references=("ref",)),)
    with pytest.raises(UserError, match=r"no id in common \(they begin with '0' and '5'\)"):
        pair_up(first, read_predictions(write(tmp_path / "c", "x", start=5)))
    with pytest.raises(UserError, match=r"no id in common \(they begin with '0' and no row\)"):
        pair_up(first, {})
    with pytest.raises(UserError, match="the row '0' has another source in each file"):
        pair_up(first, read_predictions(write(tmp_path / "d", "x", source="别")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"id": "1", "source": "s", "output": "o"}\n{"id": "1", "source": "s", "output": "p"}', ":2 has the id '1'"),
        (b'\n{"id": "1", "source": "s"}', ":2 is no prediction"),
        (b"[1]", ":1 is no prediction"),
        (b'"text"', ":1 is no prediction"),
        (b"id,source,output", ":1 is no prediction"),
        (b'{"id": 1, "source": "s", "output": "o"}', ":1 has a field that is no text"),
        (b'{"id": "1", "source": "s", "output": "o", "references": 3}', ":1 has a field that is no text"),
        (b'{"id": "1", "source": "s", "output": "o", "references": "or"}', ":1 has a field that is no text"),
        (b"\xff\xfe", "it is not UTF-8"),
    ],
)
def test_files_that_are_no_predictions(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_predictions(tmp_path / "p.jsonl")


def test_nothing_is_made_of_nothing() -> None:
    pairs = tuple(Pair(id=str(at), source="s", outputs=("x", "y")) for at in range(2))
    invalid = Judgement(outcome="invalid", answers=(None, "A"), replies=("", "A"))
    comparison = Comparison(
        arms=("a", "b"), files=("f", "g"), judge={}, pairs=pairs, judgements=(invalid, invalid), missing=(0, 0)
    )
    result = comparison.summary()
    assert result["invalid"] == 2
    assert result["shares"] == {"win": None, "tie": None, "loss": None}
    assert (result["win_rate"], result["win_rate_interval"], result["first_place_rate"]) == (None, [0.0, 1.0], None)
