from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lsemrl.rewards import Bleu, Chrf
from lsemrl.types import Completion, UserError

REFERENCE = "བོད་ཡིག་ནི་བོད་རིགས་ཀྱི་ཡི་གེ་ཡིན།"
NEAR = "བོད་ཡིག་ནི་བོད་རིགས་ཀྱི་སྐད་ཡིག་ཡིན།"
UNRELATED = "དེ་རིང་གནམ་གཤིས་ཧ་ཅང་བཟང་པོ་འདུག"


@pytest.mark.parametrize("reward", [Bleu(), Chrf()], ids=["bleu", "chrf"])
def test_overlap_is_rewarded_in_order(reward: Bleu | Chrf, answer: Callable[..., Completion]) -> None:
    texts = (REFERENCE, NEAR, UNRELATED, "")
    rewards_N = reward([answer(text, REFERENCE) for text in texts])
    same, near, unrelated, empty = rewards_N.tolist()
    assert rewards_N.dtype == torch.float32
    assert same == pytest.approx(1.0) and 0.4 < near < 0.95 and unrelated < 0.2 and empty == 0.0


@pytest.mark.parametrize("reward", [Bleu(), Chrf()], ids=["bleu", "chrf"])
def test_every_reference_counts(reward: Bleu | Chrf, answer: Callable[..., Completion]) -> None:
    assert reward([answer(NEAR, UNRELATED, NEAR)]).item() == pytest.approx(1.0)


def test_bleu_by_hand(answer: Callable[..., Completion]) -> None:
    # Four units of four, two of them in place and side by side: p1 = 2/4, p2 = 1/3; of orders 3 and 4, without a match,
    # smoothing leaves 1/(2*2) and 1/(4*1).
    score = Bleu(language="zh")([answer("甲乙丙丁", "甲乙戊己")]).item()
    assert score == pytest.approx((2 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25, rel=1e-5)


def test_a_short_text_can_have_full_bleu(answer: Callable[..., Completion]) -> None:
    assert Bleu()([answer("བོད་ཡིག", "བོད་ཡིག།")]).item() == pytest.approx(1.0)


def test_broken_bytes_match_nothing(answer: Callable[..., Completion]) -> None:
    whole, broken = Bleu()([answer("བོད་ཡིག་ནི", REFERENCE), answer("བོད་ཡིག་ན\ufffd", REFERENCE)]).tolist()
    assert broken < whole


def test_bleu_does_not_apply_where_nothing_can_be_split(answer: Callable[..., Completion]) -> None:
    reward = Bleu()
    rewards_N = reward([answer("བ" * 50, "བ" * 50), answer(REFERENCE, REFERENCE), answer(NEAR, "བ" * 50, NEAR)])
    assert rewards_N.isnan().tolist() == [True, False, False]
    assert reward.counters == {"unsplit": 1.0}


def test_references_without_a_unit_say_nothing_of_an_output(answer: Callable[..., Completion]) -> None:
    reward = Bleu()
    rewards_N = reward([answer("🙏", "🙏"), answer(REFERENCE, "🙏", REFERENCE)])
    assert rewards_N[0].isnan() and rewards_N[1] == pytest.approx(1)
    assert reward.counters == {"unsplit": 1.0}


def test_bad_language() -> None:
    with pytest.raises(UserError, match="language is 'xx'"):
        Bleu(language="xx")
