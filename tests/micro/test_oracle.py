"""The oracle: F1 over filled slots, and nothing for nonsense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsemrl.micro.oracle import meaning, parse

REFERENCE = "དགེ་རྒན་གྱིས་ཁྲོམ་ལ་དེབ་ཉོས།"  # agent, place, patient, action


@pytest.mark.parametrize(
    ("output", "f1", "exact"),
    [
        (REFERENCE, 1.0, True),
        ("ཁྲོམ་ར་ནས་དགེ་རྒན་གྱིས་དཔེ་ཆ་ཞིག་ཉོས་སོང་།", 1.0, True),  # other words, other order, same meaning
        ("དགེ་རྒན་གྱིས་ཁྲོམ་ལ་ཀུ་ཤུ་ཉོས།", 0.75, False),  # three of four slots
        ("དགེ་རྒན་གྱིས་དེབ་ཉོས།", 6 / 7, False),  # one left out: 2 * 3 / (4 + 3)
        ("དགེ་རྒན་གྱིས་ཁྲོམ་ལ་དེབ་གསུམ་ཉོས།", 8 / 9, False),  # one added: 2 * 4 / (4 + 5)
        ("དགེ་རྒན་གྱིས་ཁྲོམ་ལ་དེབ་མ་ཉོས།", 8 / 9, False),  # said not to have happened
        ("ཉོས་དེབ་དགེ་རྒན་གྱིས་ཁྲོམ་ལ།", 1.0, False),  # right slots in an order Tibetan has not
        ("དགེ་རྒན་གྱིས་ཁྲོམ་ལ་དེབ་ཉོས་ཀཀཀ།", 1.0, False),  # an unknown syllable
        ("དགེ་རྒན་དགེ་རྒན་དགེ་རྒན", 2 / 7, False),  # repetition is not rewarded: 2 * 1 / (4 + 3)
        ("老师在市场买了书。", 0.0, False),
        ("", 0.0, False),
        ("\ufffd", 0.0, False),
    ],
)
def test_hand_worked_scores(output: str, f1: float, exact: bool) -> None:
    result = meaning(output, REFERENCE)
    assert result.f1 == pytest.approx(f1)
    assert result.exact is exact


def test_a_reference_it_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="knows only the embedded world"):
        meaning(REFERENCE, "བཀྲ་ཤིས་བདེ་ལེགས།")


@given(st.text())
def test_any_text_parses_and_scores_within_bounds(text: str) -> None:
    parse(text)
    assert 0 <= meaning(text, REFERENCE).f1 <= 1
