"""A word that is left out costs, even where the encoder's cosine of whole sentences prefers silence to a wrong word."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lsemrl.micro import grammar, words
from lsemrl.rewards import Coverage, SemanticSimilarity
from lsemrl.rewards.base import Reward
from lsemrl.types import Completion, Example, UserError

TITLES = 60


def titles() -> dict[str, list[str]]:
    """References, and for each the same in other words, without its verb, and with another verb."""
    rng, found = random.Random(0), {name: list[str]() for name in ("reference", "paraphrase", "silent", "wrong", "zh")}
    while len(found["reference"]) < TITLES:
        event = replace(grammar.draw_event(rng, "test").core(), negation=None)
        others = [
            action
            for action in words.ACTIONS
            if action != event.action and event.patient in grammar.patients_of(action)
        ]
        if not others:
            continue
        said = [grammar.tibetan(event, rng, headline=True) for _ in range(3)]
        found["reference"].append(said[0])
        found["paraphrase"].append(said[1])
        found["silent"].append(without_verb(said[2], event.action))
        found["wrong"].append(grammar.tibetan(replace(event, action=rng.choice(others)), rng, headline=True))
        found["zh"].append(grammar.chinese(event, rng, headline=True))
    return found


def without_verb(title: str, action: str) -> str:
    syllables = title.rstrip(grammar.SHAD + grammar.TSHEG).split(grammar.TSHEG)[:-1]
    verb = next(
        verb
        for verb in sorted(words.ACTIONS[action][1], key=len, reverse=True)
        if grammar.TSHEG.join(syllables).endswith(grammar.TSHEG + verb)
    )
    return grammar.TSHEG.join(syllables[: -len(verb.split(grammar.TSHEG))]) + grammar.SHAD


def examples(said: dict[str, list[str]], *, pair: bool = True) -> list[Example]:
    rows = enumerate(zip(said["zh"], said["reference"], strict=True))
    return [Example(id=str(at), prompt="", source=zh, references=(bo,), pair=pair) for at, (zh, bo) in rows]


def scored(part: Reward, rows: list[Example], texts: list[str]) -> torch.Tensor:
    return part([Completion(text=text, ended=True, example=row) for text, row in zip(texts, rows, strict=True)])


def auc(high_N: torch.Tensor, low_N: torch.Tensor) -> float:
    above_NN = high_N[:, None] - low_N[None]
    return float(((above_NN > 0) + (above_NN == 0) / 2).mean())


def test_a_title_without_its_verb_earns_less_than_one_with_a_wrong_verb() -> None:
    said = titles()
    rows, part = examples(said), Coverage()
    assert "counts as nothing" in part.look_at(rows)
    right_N, silent_N, wrong_N = (scored(part, rows, said[name]) for name in ("paraphrase", "silent", "wrong"))
    assert auc(right_N, silent_N) > 0.98 and auc(right_N, wrong_N) > 0.9
    assert (silent_N > wrong_N).float().mean() < 0.05
    cosine = SemanticSimilarity(cache_dir="none")
    preferred_N = scored(cosine, rows, said["silent"]) > scored(cosine, rows, said["wrong"])
    assert preferred_N.float().mean() > 0.1  # which is the hole


def test_a_right_title_that_is_padded_loses_precision_and_no_recall() -> None:
    said = titles()
    rows = examples(said)
    padded = [f"{text}{other}" for text, other in zip(said["paraphrase"], said["paraphrase"][::-1], strict=True)]

    def lost(part: Reward) -> float:
        part.look_at(rows)
        return float(scored(part, rows, said["paraphrase"]).mean() - scored(part, rows, padded).mean())

    assert lost(Coverage(side="precision")) > 0.2 > 0.1 > lost(Coverage(side="recall"))


def test_coverage_of_the_source() -> None:
    said = titles()
    part, rows = Coverage(against="source"), examples(said)
    part.look_at(rows)
    assert auc(scored(part, rows, said["paraphrase"]), scored(part, rows, said["silent"])) > 0.9
    alone = examples(said, pair=False)
    assert "left out" in part.look_at(alone) and scored(part, alone, said["paraphrase"]).isnan().all()


def test_the_floor_knows_no_order_and_no_row_twice() -> None:
    rows, floors = examples(titles()), []
    for these in (rows, [row for row in rows for _ in range(3)], rows[:1], [rows[0]] * 5):
        part = Coverage()
        part.look_at(these)
        floors.append(part.floor)
    assert floors[0] == pytest.approx(floors[1]) and floors[0] > 0.2
    assert floors[2:] == [0.0, 0.0]  # nothing to hold it against


@pytest.fixture
def part(encoder_path: str) -> Coverage:
    return Coverage(encoder=encoder_path, floor=0.0)


def test_the_best_reference_counts_and_the_same_text_is_all_of_it(
    part: Coverage, answer: Callable[..., Completion]
) -> None:
    assert part([answer("the cat", "big house", "the cat")]).tolist() == pytest.approx([1.0])
    only, both = part([answer("the cat", "big house"), answer("the cat", "big house", "red dog")]).tolist()
    assert both >= only < 1


def test_nothing_said_is_0_and_nothing_to_say_is_nan(part: Coverage, answer: Callable[..., Completion]) -> None:
    nothing, _, no_reference = part(
        [answer("  ", "the cat"), answer("dog", "the cat"), answer("the cat", " ")]
    ).tolist()
    assert nothing == 0 and math.isnan(no_reference)


def test_the_batch_does_not_matter(part: Coverage, answer: Callable[..., Completion]) -> None:
    batch = [answer("the cat saw", "the dog ate fish"), answer("big", "the big red bird ate the fish now")]
    alone = [float(part([one])) for one in batch]
    assert part(batch).tolist() == pytest.approx(alone, abs=1e-5)


def test_the_floor_is_nothing(encoder_path: str, answer: Callable[..., Completion]) -> None:
    [plain] = Coverage(encoder=encoder_path, floor=0.0)([answer("the cat saw", "the cat ate")]).tolist()
    [raised] = Coverage(encoder=encoder_path, floor=0.5)([answer("the cat saw", "the cat ate")]).tolist()
    assert raised == pytest.approx((plain - 0.5) / 0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"side": "both"}, "side is 'both' in Coverage: choose one of recall, precision"),
        ({"against": "prompt"}, "against is 'prompt' in Coverage"),
        ({"floor": 1.0}, r"floor is 1.0 in Coverage: set it in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size is 0 in Coverage"),
        ({"device": "gpu"}, "device of Coverage is 'gpu'"),
        ({"encoder": "nowhere/at/all"}, "encoder is 'nowhere/at/all'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Coverage(**settings)


def test_against_the_source_no_reference_is_needed() -> None:
    part = Coverage(against="source")
    alone = Example(id="0", prompt="", source="老师买了书。", references=(), pair=True)
    assert not part.reads_references and Coverage().reads_references
    with pytest.raises(UserError, match="floor is null in Coverage, and no row has a reference to measure it by"):
        part.look_at([alone])
    assert "taken for 0" in Coverage(against="source", weight=0.0).look_at([alone])
    assert Coverage(weight=0.0).look_at([alone]) == "Coverage of the reference is left out: no row has one"
    assert Coverage(against="source", floor=0.4).look_at([alone]) == ""
    [found] = part([Completion(text="དགེ་རྒན་གྱིས་དེབ་ཉོས།", ended=True, example=alone)]).tolist()
    assert 0.3 < found <= 1
