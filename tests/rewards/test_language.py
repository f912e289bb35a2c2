from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lsemrl.rewards import LanguageConsistency
from lsemrl.types import Completion, UserError


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("བོད་ཡིག་ཡིན།", 1.0),
        ("བོད་ཡིག་ཡིན། 2024 😀", 1.0),
        ("藏文", 0.0),
        ("བོད་藏文藏文藏文", 0.0),
        ("", 0.0),
        ("  \n", 0.0),
        ("123 ༡༢༣ ་།", 0.0),
        ("\ufffd", 0.0),
        ("བོད\ufffd", 0.0),  # two letters in three
        ("བོད་ཡིག་ཡིན་ཡ\ufffd", 1.0),  # seven in eight
    ],
)
def test_reward(answer: Callable[..., Completion], text: str, reward: float) -> None:
    rewards_N = LanguageConsistency(language="bo")([answer(text)])
    assert rewards_N.dtype == torch.float32 and rewards_N.tolist() == [reward]


def test_only_the_script_is_judged(answer: Callable[..., Completion]) -> None:
    ended, cut = LanguageConsistency()([answer("བོད་ཡིག"), answer("བོད་ཡིག", ended=False)]).tolist()
    assert ended == cut == 1.0


def test_the_threshold_may_be_set(answer: Callable[..., Completion]) -> None:
    half = [answer("བབab")]
    assert LanguageConsistency(threshold=0.5)(half).tolist() == [1.0]
    assert LanguageConsistency(threshold=0.51)(half).tolist() == [0.0]
    assert LanguageConsistency()(half).tolist() == [0.0]


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_bad_threshold(threshold: float) -> None:
    with pytest.raises(UserError, match=r"threshold is .* LanguageConsistency"):
        LanguageConsistency(threshold=threshold)


def test_bad_language() -> None:
    with pytest.raises(UserError, match="language is 'xx'"):
        LanguageConsistency(language="xx")
