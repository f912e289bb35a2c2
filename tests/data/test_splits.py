"""Equal content stays together, and no row moves another."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsemrl.data.splits import Splits, choose_part, content_key, split_by_content, take_by_content, without_shared
from lsemrl.types import UserError

ROWS = st.lists(st.text("ab \u0301e\u00e9", max_size=4), max_size=60)


def split(rows: list[str], seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    return split_by_content(rows, content_key, validation_fraction=0.2, test_fraction=0.3, seed=seed)


@given(rows=ROWS, more=ROWS, seed=st.integers(0, 3))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_split_is_a_partition_by_content_that_rows_do_not_disturb(rows: list[str], more: list[str], seed: int) -> None:
    parts = split(rows, seed)
    assert sorted(row for part in parts for row in part) == sorted(rows)
    keys = [{content_key(row) for row in part} for part in parts]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    for part, grown in zip(parts, split(more + rows, seed), strict=True):
        assert set(part) <= set(grown)


@given(rows=ROWS, count=st.integers(0, 70), seed=st.integers(0, 3))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_cold_start_and_rl_are_disjoint_and_whole(rows: list[str], count: int, seed: int) -> None:
    taken, left = take_by_content(rows, content_key, count=count, seed=seed)
    assert sorted(taken + left) == sorted(rows)
    assert not {content_key(row) for row in taken} & {content_key(row) for row in left}
    assert len(taken) >= min(count, len(rows))
    again, _ = take_by_content(rows[::-1], content_key, count=count, seed=seed)
    assert sorted(again) == sorted(taken)  # the order of the file does not matter
    if len({content_key(row) for row in rows}) == len(rows):
        assert len(taken) == min(count, len(rows))


def test_shares_are_about_right_and_the_seed_matters() -> None:
    rows = [str(at) for at in range(4000)]
    train, validation, test = split(rows)
    assert (len(train) / 4000, len(validation) / 4000, len(test) / 4000) == pytest.approx((0.5, 0.2, 0.3), abs=0.03)
    assert test != split(rows, seed=1)[2]
    assert train == sorted(train, key=int)  # the order of the file is kept


def test_validation_share_does_not_move_the_test() -> None:
    rows = [str(at) for at in range(500)]
    tests = [
        split_by_content(rows, content_key, validation_fraction=share, test_fraction=0.1, seed=0)[2]
        for share in (0.0, 0.5)
    ]
    assert tests[0] == tests[1]


def test_content_key_sees_through_writing() -> None:
    assert content_key("e\u0301  a\n") == content_key("\u00e9 a")
    assert content_key("\ufeffe\u200e\u0301 \u200f\u061ca\u00ad\u200b") == content_key("\u00e9 a")
    for read in ("\u200c", "\u200d", "\u180e", "\ufe0f"):  # not seen, but what is beside them is written otherwise
        assert content_key(f"a{read}b") != content_key("ab")
    assert content_key("ab", "c") != content_key("a", "bc")


def test_parts_of_the_training_rows() -> None:
    rows = [str(at) for at in range(100)]

    def part(**settings: object) -> set[str]:
        return set(choose_part(rows, content_key, Splits(**settings)))  # type: ignore[arg-type]

    cold_start, rl = part(part="cold_start", cold_start_count=30), part(part="rl", cold_start_count=30)
    assert (len(cold_start), len(rl), cold_start | rl) == (30, 70, set(rows))
    assert part(cold_start_count=30) == set(rows)
    few = part(max_rows=50)
    assert len(few) == 50
    # A smaller run starts from the same cold start, and learns from fewer of the same rows.
    assert part(part="cold_start", cold_start_count=30, max_rows=50) == cold_start
    assert part(part="rl", cold_start_count=30, max_rows=50) == few - cold_start
    with pytest.raises(UserError, match="cold_start_count is 100, but there are 100 training rows"):
        part(part="cold_start", cold_start_count=100)


def test_rows_that_share_any_content_are_left_out() -> None:
    rows = [("a", "x"), ("b", "y"), ("c ", "z")]
    assert without_shared(rows, list, [("q", "y"), ("c", "r")]) == [("a", "x")]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"validation_fraction": 1.5}, "splits.validation_fraction is 1.5"),
        ({"test_fraction": -0.1}, "splits.test_fraction is -0.1"),
        ({"validation_fraction": 0.5, "test_fraction": 0.6}, "are more than all"),
        ({"part": "warm"}, "splits.part is 'warm'"),
        ({"cold_start_count": -1}, "splits.cold_start_count is -1"),
        ({"part": "rl"}, "splits.cold_start_count is 0"),
        ({"max_rows": 0}, "splits.max_rows is 0"),
    ],
)
def test_impossible_splits_are_named(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Splits(**settings)  # type: ignore[arg-type]
