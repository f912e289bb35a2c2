"""RL on sentences that nobody has translated, whose rewards need no reference."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lsemrl.data.sources import Source
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.errors import UserError
from lsemrl.rewards import Chrf, Reward, RewardMix
from lsemrl.types import Completion
from short_runs import grpo, metrics, run, sft


class Long(Reward):
    """The longer the better."""

    reads_references = False

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        return torch.tensor([float(len(each.text)) for each in completions])


def untranslated() -> TranslationData:
    return TranslationData(untranslated=Source(), micro=MicroRows(train=8, validation=4, test=4), batch_size=4)


@pytest.mark.filterwarnings("error:std")
def test_rl_learns_from_them(tiny_model: str, tmp_path: Path) -> None:
    module = grpo(tiny_model)
    module.reward_mix = RewardMix({"long": Long(), "watched": Chrf(weight=0.0)})
    run(module, tmp_path, epochs=1, data=untranslated(), monitor=None)
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["reference"] for row in rows} == {""} and {row["watched"] for row in rows} == {"nan"}
    assert max(float(row["advantages/mean_abs"]) for row in metrics(tmp_path) if row["reward"]) > 0


def test_what_reads_references_is_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rewards\.chrf is Chrf, which reads references, and 8 of 8 rows have none"):
        run(grpo(tiny_model), tmp_path, data=untranslated())
    with pytest.raises(
        UserError, match=r"data\.untranslated gives rows without a reference, of which SFT learns nothing"
    ):
        run(sft(tiny_model), tmp_path, data=untranslated())
