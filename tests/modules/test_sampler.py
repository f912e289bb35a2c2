"""Group sampling: exactly the settings, nothing of the model's own, every end recognised."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from lsemrl.errors import UserError
from lsemrl.kernels import products
from lsemrl.modules import decoding, engines, sampler
from lsemrl.modules.adapters import merging
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings
from lsemrl.modules.sampler import draw, sample
from lsemrl.modules.sampling import Engine, Sampling
from lsemrl.types import PromptBatch, Rollouts
from matrix import slow_but
from tiny import begun_alike, make_policy, plain_logits

SAMPLING = Sampling(num_generations=4, temperature=1.0, top_p=0.9, max_new_tokens=12)
BEAMS = Sampling(num_generations=1, temperature=0.0, num_beams=3, max_new_tokens=12)


def ids(rollouts: Rollouts) -> list[list[int]]:
    return rollouts.sequences.completion_ids_NT.tolist()


def test_a_seed_names_its_completions(policy: Policy, prompts: PromptBatch) -> None:
    one = sample(policy, prompts, SAMPLING, seed=1)
    assert ids(one) == ids(sample(policy, prompts, SAMPLING, seed=1))
    assert ids(one) != ids(sample(policy, prompts, SAMPLING, seed=2))
    assert len(one.completions) == 12
    assert [completion.example.id for completion in one.completions] == ["0"] * 4 + ["1"] * 4 + ["2"] * 4


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is traced of the decoding step, which is then run without code generation."""
    found: list[object] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph.forward

    step = torch.compile(decoding.plain_step, dynamic=True, backend=backend, fullgraph=True)
    monkeypatch.setattr(engines, "compiled_step", lambda: step)
    return found


@pytest.mark.slow
def test_a_compiled_step_draws_the_same(
    policy: Policy, prompts: PromptBatch, graphs: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever the number of rows and tokens, it is traced once, or twice when a number turns out to vary."""
    monkeypatch.setattr(policy, "eos_ids", lambda: [*range(0, 1000, 5)])  # so that rows are dropped
    compiled = replace(SAMPLING, engine="compiled")
    for seed in range(3):
        assert ids(sample(policy, prompts, compiled, seed)) == ids(sample(policy, prompts, SAMPLING, seed))
    longer = replace(SAMPLING, max_new_tokens=17, num_generations=7)
    fewer = PromptBatch(**{name: value[:2] for name, value in vars(prompts).items()})
    one = sample(policy, fewer, replace(longer, engine="compiled"), seed=5)
    assert ids(one) == ids(sample(policy, fewer, longer, seed=5))
    assert len(graphs) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_step_says_the_same_in_mixed_precision(
    dtype: str, tiny_model: str, prompts: PromptBatch, graphs: list[object]
) -> None:
    policy = make_policy(tiny_model, dtype=dtype)
    with policy.merged(), torch.autocast("cpu", torch.bfloat16):
        ways = [
            decoding.read_prompts(policy, prompts.prompt_ids_BP, prompts.prompt_mask_BP, 2, 5, way)[1]
            for way in (decoding.Growing, partial(decoding.Fixed, step=engines.compiled_step(), replay=None))
        ]
        for step in range(5):
            if step == 3:
                for way in ways:
                    way.keep(torch.tensor([1, 4]))
            token_N = torch.arange(2 if step >= 3 else 6) + 10 * step
            one_NV, other_NV = (way(token_N).float() for way in ways)
            # Single logits differ by how a processor rounds to bfloat16; one is .064 off where its kind has AMX.
            assert float((one_NV - other_NV).abs().mean()) < 0.02 * float(one_NV.std())
    assert graphs


def test_what_cannot_be_compiled_is_told(policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "window", lambda model: 4)
    with pytest.raises(
        UserError, match=r"sampling\.engine is compiled, but the model attends in a sliding window of 4"
    ):
        sample(policy, prompts, replace(SAMPLING, engine="compiled"), seed=0)


@pytest.mark.parametrize(("back", "unfit"), [(32_767, True), (32_768, False)])
def test_a_window_that_no_row_can_reach_is_none(
    policy: Policy, back: int, unfit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert policy.model.config.max_position_embeddings == 32_768
    monkeypatch.setattr(engines, "window", lambda model: back)
    reason = engines._unfit(policy, "compiled", torch.device("cpu"))
    assert reason == ("the model attends in a sliding window of 32767" if unfit else None)


class Recorded:
    """Runs a step as `Replay` does, but that every launch is asked for: what was recorded must lie where it lay."""

    def __init__(self, device: torch.device) -> None:
        self.recordings: list[list[int]] = []
        self.renew()

    def __call__(self, step: Any) -> torch.Tensor:
        self.runs += 1
        fixed = step.__self__
        slots = [each for one in fixed._slots for each in (one.keys, one.values)]
        states = [fixed._token_N1, fixed._mask_N11L, fixed._position_N1, fixed._at, *slots]
        places = [*(state.data_ptr() for state in states), len(fixed._token_N1)]
        if self.runs == 2:
            self.recordings.append(places)
        assert self.runs < 3 or places == self.recordings[-1]
        return step()

    def renew(self) -> None:
        self.runs = 0


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Graphs where there is no CUDA."""
    made: list[Recorded] = []
    monkeypatch.setattr(engines, "Replay", lambda device: made.append(Recorded(device)) or made[-1])
    monkeypatch.setattr(engines, "_unfit", lambda policy, engine, device: None)
    return made


def test_what_is_recorded_stays_where_it_is(
    policy: Policy, prompts: PromptBatch, recorded: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And draws the same, while rows end: the number of rows that are computed halves, and is recorded anew."""
    monkeypatch.setattr(policy, "eos_ids", lambda: [*range(0, 1000, 9)])
    graphs = replace(SAMPLING, engine="graphs", num_generations=5, top_p=1.0, max_new_tokens=30)
    for seed in range(3):
        assert ids(sample(policy, prompts, graphs, seed)) == ids(
            sample(policy, prompts, replace(graphs, engine="loop"), seed)
        )
    rows = [[places[-1] for places in one.recordings] for one in recorded[1:]]  # the first was the proof
    assert all(one == sorted(one, reverse=True) and set(one) <= {15, 7, 3, 1} for one in rows)
    assert any(len(one) > 1 for one in rows)


def test_validation_leaves_tensors_that_training_can_write_to(policy: Policy, prompts: PromptBatch) -> None:
    """What is made ready for the first recording serves all others, and the first is that of a validation."""
    made: list[torch.Tensor] = []
    with torch.inference_mode():
        one = sample(policy, prompts, SAMPLING, seed=0, told=made.append)
    assert made and not any(tensor.is_inference() for tensor in (*made, one.ended_N, one.sequences.completion_ids_NT))
    assert ids(one) == ids(sample(policy, prompts, SAMPLING, seed=0))


@pytest.mark.parametrize("engine", ["graphs", "compiled"])
def test_what_draws_from_another_model_in_place_is_not_taken(
    engine: Engine, policy: Policy, prompts: PromptBatch, recorded: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = engines.plain_step
    monkeypatch.setattr(engines, "plain_step", lambda model, ids, mask, *about: step(model, ids, 0 * mask, *about))
    with pytest.raises(
        UserError, match=rf"sampling\.engine is {engine}, which draws from another model \(log-probs were off"
    ):
        sample(policy, prompts, replace(SAMPLING, engine=engine), seed=0)
    one = sample(policy, prompts, SAMPLING, seed=0)
    assert ids(one) == ids(sample(policy, prompts, replace(SAMPLING, engine="loop"), seed=0))


def test_graphs_need_cuda(policy: Policy, prompts: PromptBatch) -> None:
    if prompts.prompt_ids_BP.is_cuda:
        pytest.skip("it is CUDA")
    with pytest.raises(
        UserError, match=r"sampling\.engine is graphs, but the device is cpu, and graphs are CUDA's; set"
    ):
        sample(policy, prompts, replace(SAMPLING, engine="graphs"), seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_replayed_is_what_the_loop_draws(tiny_model: str, prompts: PromptBatch) -> None:
    """Also after the weights have moved."""
    policy = make_policy(tiny_model).to("cuda")
    policy.eos_ids = lambda: [*range(0, 1000, 9)]  # type: ignore[method-assign]
    sampling = replace(SAMPLING, num_generations=5, max_new_tokens=30)
    for seed in range(3):
        drawn = [
            ids(sample(policy, prompts.to("cuda"), replace(sampling, engine=engine), seed))
            for engine in ("graphs", "loop")
        ]
        assert drawn[0] == drawn[1]
        for weight in policy.trained().values():
            weight.data.mul_(1.1)


def test_prompts_in_parts_are_answered_alike(policy: Policy, prompts: PromptBatch) -> None:
    greedy = Sampling(num_generations=2, temperature=0.0, max_new_tokens=12)
    whole = sample(policy, prompts, greedy, seed=0)
    for parts in (2, 3, 8):
        some = sample(policy, prompts, greedy, seed=0, parts=parts)
        assert ids(some) == ids(whole)
        assert torch.equal(some.sequences.completion_mask_NT, whole.sequences.completion_mask_NT)
        assert torch.equal(some.ended_N, whole.ended_N)
        assert some.completions == whole.completions


def test_sampling_leaves_the_global_generator_alone(policy: Policy, prompts: PromptBatch) -> None:
    before = torch.get_rng_state()
    sample(policy, prompts, SAMPLING, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_models_own_generation_config_changes_nothing(policy: Policy, prompts: PromptBatch) -> None:
    plain = sample(policy, prompts, SAMPLING, seed=3)
    policy.model.generation_config = GenerationConfig(
        do_sample=False,
        temperature=0.01,
        top_k=1,
        top_p=0.1,
        repetition_penalty=9.0,
        max_new_tokens=2,
        min_new_tokens=2,
        bad_words_ids=[[token] for token in range(5, 500)],
        eos_token_id=policy.model.generation_config.eos_token_id,
    )
    assert ids(sample(policy, prompts, SAMPLING, seed=3)) == ids(plain)


def test_greedy_is_what_transformers_generates(policy: Policy, prompts: PromptBatch) -> None:
    greedy = Sampling(num_generations=2, temperature=0.0, max_new_tokens=12)
    ours = sample(policy, prompts, greedy, seed=0)
    policy.model.eval()
    theirs = policy.model.generate(
        input_ids=prompts.prompt_ids_BP,
        attention_mask=prompts.prompt_mask_BP.long(),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=policy.eos_ids(),
        pad_token_id=policy.tokenizer.pad_token_id,
    )[:, prompts.prompt_ids_BP.shape[1] :]
    for row in range(3):
        mask = ours.sequences.completion_mask_NT[2 * row]
        mine = ours.sequences.completion_ids_NT[2 * row][mask]
        assert torch.equal(mine, theirs[row][: len(mine)])
    assert ids(ours)[::2] == ids(ours)[1::2]


@pytest.mark.parametrize("beams", slow_but([2, 3, 5], [3]))
@pytest.mark.parametrize("every", slow_but([1000, 40, 5], [40]))
@pytest.mark.parametrize("answers", [1, 2])
def test_beams_find_what_transformers_finds(
    answers: int, beams: int, every: int, policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one EOS and with many, so that prompts are done at different times, and some never."""
    ends = [*range(3, len(policy.tokenizer), every)]
    monkeypatch.setattr(policy, "eos_ids", lambda: ends)
    ours = sample(policy, prompts, replace(BEAMS, num_beams=beams, num_generations=answers), seed=0)
    policy.model.eval()
    prompt = prompts.prompt_ids_BP.shape[1]
    theirs = policy.model.generate(
        input_ids=prompts.prompt_ids_BP,
        attention_mask=prompts.prompt_mask_BP.long(),
        do_sample=False,
        num_beams=beams,
        num_return_sequences=answers,
        length_penalty=1.0,
        early_stopping=False,
        max_new_tokens=BEAMS.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=policy.tokenizer.pad_token_id,
    )[:, prompt:]
    masks = ours.sequences.completion_mask_NT
    said = [row[mask].tolist() for row, mask in zip(ours.sequences.completion_ids_NT, masks, strict=True)]
    assert said == [row[: len(mine)].tolist() for row, mine in zip(theirs, said, strict=True)]
    assert ours.ended_N.tolist() == [mine[-1] in ends for mine in said]
    assert all(ended or len(mine) == BEAMS.max_new_tokens for ended, mine in zip(ours.ended_N, said, strict=True))


def test_beams_find_the_same_in_parts_and_in_place(
    policy: Policy, prompts: PromptBatch, graphs: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "eos_ids", lambda: [*range(0, 1000, 40)])  # so that prompts are dropped
    whole = sample(policy, prompts, BEAMS, seed=0)
    assert ids(sample(policy, prompts, BEAMS, seed=1, parts=3)) == ids(whole)
    assert ids(sample(policy, prompts, replace(BEAMS, engine="compiled"), seed=0)) == ids(whole)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": 0.8}, "num_beams"),
        ({"engine": "vllm", "top_p": 1.0}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_generations": 4}, "num_generations"),
    ],
)
def test_beams_search_answers_that_are_not_drawn(change: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"sampling.{field} is \d"):
        replace(BEAMS, **change)


def test_sampled_tokens_are_those_the_training_path_scores(policy: Policy, prompts: PromptBatch) -> None:
    # With top_p so small that only the likeliest token is left, each must be the argmax of the scored logits.
    narrow = Sampling(num_generations=2, temperature=0.8, top_p=1e-6, max_new_tokens=8)
    rollouts = sample(policy, prompts, narrow, seed=0)
    with policy.inference():
        best_NT = plain_logits(policy.model, rollouts.sequences).argmax(dim=-1)
    mask = rollouts.sequences.completion_mask_NT
    assert torch.equal(best_NT[mask], rollouts.sequences.completion_ids_NT[mask])


def test_every_eos_id_ends_a_completion(policy: Policy, prompts: PromptBatch) -> None:
    free = sample(policy, prompts, SAMPLING, seed=5)
    first = free.sequences.completion_ids_NT[:, 0].tolist()
    policy.model.config.eos_token_id = [policy.tokenizer.eos_token_id, first[0]]
    policy.model.generation_config.eos_token_id = first[5]
    assert {first[0], first[5], policy.tokenizer.eos_token_id} == set(policy.eos_ids())
    ended = sample(policy, prompts, SAMPLING, seed=5)
    assert ended.sequences.completion_ids_NT[:, 0].tolist() == first
    for row in (0, 5):
        assert ended.ended_N[row]
        assert int(ended.sequences.completion_mask_NT[row].sum()) == 1


def test_what_ends_a_text_is_no_part_of_it(
    policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the tokenizer does not mark it as special."""
    monkeypatch.setattr(policy, "eos_ids", lambda: [*range(5, 1000, 5)])
    found = sample(policy, prompts, SAMPLING, seed=1)
    assert 0 < int(found.ended_N.sum()) < len(found.completions)
    for one, ids_T, mask_T in zip(found.completions, ids(found), found.sequences.completion_mask_NT, strict=True):
        said = ids_T[: int(mask_T.sum()) - one.ended]
        assert one.text == policy.tokenizer.decode(said, skip_special_tokens=True)


def test_truncated_completions_are_marked(policy: Policy, prompts: PromptBatch) -> None:
    rollouts = sample(policy, prompts, Sampling(num_generations=4, temperature=1.0, max_new_tokens=3), seed=1)
    eos = torch.tensor(policy.eos_ids())
    tokens, mask = rollouts.sequences.completion_ids_NT, rollouts.sequences.completion_mask_NT
    has_eos_N = (torch.isin(tokens, eos) & mask).any(dim=1)
    assert torch.equal(rollouts.ended_N, has_eos_N)
    assert not rollouts.ended_N.all()
    assert mask[~rollouts.ended_N].all()
    assert [completion.ended for completion in rollouts.completions] == rollouts.ended_N.tolist()


def test_nothing_is_said_after_the_end(policy: Policy, prompts: PromptBatch) -> None:
    policy.model.generation_config.eos_token_id = list(range(0, 1473, 3))  # a third of all tokens end
    rollouts = sample(policy, prompts, SAMPLING, seed=1)
    tokens, mask = rollouts.sequences.completion_ids_NT, rollouts.sequences.completion_mask_NT
    assert (tokens[~mask] == policy.tokenizer.pad_token_id).all()
    assert (mask.long().diff(dim=1) <= 0).all()


def test_dropout_plays_no_part(tiny_model: str, prompts: PromptBatch) -> None:
    policy = make_policy(tiny_model, lora=LoraSettings(rank=4, alpha=8.0, dropout=0.5))
    policy.train()
    one = sample(policy, prompts, SAMPLING, seed=1)
    assert policy.model.training
    policy.eval()
    assert ids(one) == ids(sample(policy, prompts, SAMPLING, seed=1))


def frequencies(logits: list[float], sampling: Sampling) -> list[float]:
    rows = torch.tensor(logits).repeat(20_000, 1)
    drawn, logprobs_N = draw(rows, sampling, torch.Generator().manual_seed(0))
    if sampling.temperature:  # of which top-k and top-p know nothing
        expected_NV = (rows / sampling.temperature).log_softmax(-1)
        torch.testing.assert_close(logprobs_N, expected_NV.gather(1, drawn[:, None])[:, 0])
    return [float((drawn == token).float().mean()) for token in range(len(logits))]


def test_draw_follows_temperature_top_k_and_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    everything = {"temperature": 1.0, "top_p": 1.0}
    assert frequencies(logits, Sampling(**everything)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)
    # Squared and normalised: .25 + .09 + .0225 + .0025 = .365.
    cooler = frequencies(logits, Sampling(temperature=0.5, top_p=1.0))
    assert cooler == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.015)
    assert frequencies(logits, Sampling(temperature=1.0, top_p=1.0, top_k=2)) == pytest.approx(
        [0.625, 0.375, 0, 0], abs=0.015
    )
    assert frequencies(logits, Sampling(temperature=1.0, top_p=1.0, top_k=1)) == [1, 0, 0, 0]
    # .5 + .3 falls short of .81, so the third is kept; the fourth is not.
    assert frequencies(logits, Sampling(temperature=1.0, top_p=0.81)) == pytest.approx(
        [0.526, 0.316, 0.158, 0], abs=0.015
    )
    assert frequencies(logits, Sampling(temperature=1.0, top_p=0.8))[2] == 0
    assert frequencies(logits, Sampling(temperature=0.0)) == [1, 0, 0, 0]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])  # nuclei of nearly all of 500 tokens down to a few
def test_top_p_keeps_the_smallest_nucleus(top_p: float, spread: float) -> None:
    logits_NV = spread * torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    probabilities, order = logits_NV.softmax(-1).sort(descending=True)
    sizes_N = (probabilities.cumsum(-1) < top_p).sum(-1) + 1
    drawn, _ = draw(
        logits_NV.repeat_interleave(1500, 0),
        Sampling(temperature=1.0, top_p=top_p),
        torch.Generator().manual_seed(1),
    )
    for row, tokens in enumerate(drawn.view(4, 1500)):
        nucleus = order[row, : sizes_N[row]]
        counts = torch.bincount(tokens, minlength=500)
        assert counts[nucleus].sum() == 1500
        expected = 1500 * logits_NV[row].softmax(-1)[nucleus] / logits_NV[row].softmax(-1)[nucleus].sum()
        assert ((counts[nucleus] - expected).abs() < 5 * expected.sqrt() + 5).all()


@pytest.mark.parametrize("late", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_told(
    policy: Policy, prompts: PromptBatch, temperature: float, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest of NaNs would be a token like any other."""
    monkeypatch.setattr(sampler, "_behind", lambda device: late)
    sample(policy, prompts, SAMPLING, seed=0)  # in which the way of decoding is proven, who would tell it, too
    next(iter(policy.trained().values())).data[0] = torch.nan
    with pytest.raises(UserError, match=r"logits are not finite: .*lower optimizer\.lr"):
        sample(policy, prompts, replace(SAMPLING, temperature=temperature), seed=0)


@pytest.mark.parametrize("late", [1, 3])
def test_a_word_that_comes_late_changes_nothing(
    policy: Policy, prompts: PromptBatch, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the next tokens are asked for before it is known how many completions go on."""
    policy.eos_ids = lambda: [*range(0, 1000, 7)]  # type: ignore[method-assign]
    greedy = Sampling(num_generations=3, temperature=0.0, max_new_tokens=20)
    at_once = sample(policy, prompts, greedy, seed=0)
    monkeypatch.setattr(sampler, "_behind", lambda device: late)
    found = sample(policy, prompts, greedy, seed=0)
    assert found.completions == at_once.completions
    assert torch.equal(found.sequences.completion_mask_NT, at_once.sequences.completion_mask_NT)
    assert torch.equal(found.ended_N, at_once.ended_N)
    assert at_once.slots < found.slots  # it was asked for more than was needed
    sample(policy, prompts, replace(greedy, temperature=1.0), seed=0)


@pytest.mark.parametrize("vocabulary", slow_but([300, 1300], [300]))
def test_a_nucleus_is_as_wide_as_a_flat_row_needs(vocabulary: int) -> None:
    """It is looked for among the likeliest 64 first, then among the likeliest 1024, then among all."""
    sampling, generator = Sampling(temperature=1.0, top_p=0.8), torch.Generator().manual_seed(1)
    tokens, _ = draw(torch.zeros(12 * vocabulary, vocabulary), sampling, generator)
    assert len(tokens.unique()) == pytest.approx(0.8 * vocabulary, abs=1)


@pytest.mark.parametrize("vocabulary", [300, 5000, 5056])
def test_the_likeliest_are_found_block_by_block(vocabulary: int) -> None:
    probabilities_NV = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(vocabulary)).softmax(-1)
    probabilities_NV[:, -20:] *= 100  # in the last block, which need not be whole
    for count in (3, 8):
        found_NK, ids_NK = sampler._likeliest(probabilities_NV, count)
        expected_NK, expected_ids_NK = probabilities_NV.topk(count, dim=-1)
        assert torch.equal(found_NK, expected_NK)
        assert torch.equal(ids_NK, expected_ids_NK)


def test_what_is_read_is_written_in_place_until_there_is_no_room(policy: Policy, prompts: PromptBatch) -> None:
    """And what follows is what keys and values that are copied with every token lead to."""

    def read(way: type) -> tuple[list[torch.Tensor], list[int]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "_Room", way)
            _, go_on = decoding.read_prompts(
                policy, prompts.prompt_ids_BP, prompts.prompt_mask_BP, 2, 6, decoding.Growing
            )
        found, places = [], []
        for step in range(6):
            if step == 3:
                go_on.keep(torch.tensor([1, 4]))
            found.append(go_on(torch.arange(2 if step >= 3 else 6) + 10 * step))
            places.append(go_on._kept.layers[0].keys.data_ptr())  # type: ignore[attr-defined]
        return found, places

    class Copied:
        def __new__(cls, layer: Any, longest: int) -> Any:
            return layer

    with policy.merged():
        (found, places), (expected, _) = read(decoding._Room), read(Copied)
    for one_NV, other_NV in zip(found, expected, strict=True):
        torch.testing.assert_close(one_NV, other_NV, rtol=0, atol=0)
    assert len({*places[:3]}) == len({*places[3:]}) == 1  # rows were dropped between


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("way", [decoding.Growing, partial(decoding.Fixed, step=decoding.plain_step, replay=None)])
def test_what_prompts_begin_with_is_read_once(
    way: Any, group: int, policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what follows is what whole prompts lead to."""
    alike, fed = begun_alike(prompts), list[tuple[int, ...]]()
    forward = policy.forward
    monkeypatch.setattr(policy, "forward", lambda **asked: fed.append(asked["input_ids"].shape) or forward(**asked))

    def read() -> list[torch.Tensor]:
        logits_NV, go_on = decoding.read_prompts(policy, alike.prompt_ids_BP, alike.prompt_mask_BP, group, 5, way)
        found, rows = [logits_NV], torch.arange(3 * group)
        for step in range(5):
            if step == 3:
                rows = rows[1::2]
                go_on.keep(rows)
            found.append(go_on(rows + 10 * step).clone())
        return found

    longest = prompts.prompt_ids_BP.shape[1]
    with policy.merged():
        shared = read()
        assert fed[:2] == [(1, 9), (3, longest)]
        monkeypatch.setattr(decoding, "LESS", 0.0)
        fed.clear()
        whole = read()
        assert fed[0] == (3, 9 + longest)
    for one_NV, other_NV in zip(shared, whole, strict=True):
        torch.testing.assert_close(one_NV, other_NV, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fault", ["window", "sharded", "family", "alone"])
def test_whole_prompts_are_read_where_a_prefix_cannot_be(
    fault: str, policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = begun_alike(prompts)
    ids_BP, mask_BP = alike.prompt_ids_BP, alike.prompt_mask_BP
    assert decoding._prefix(policy, ids_BP, mask_BP) == 9
    assert (
        decoding._prefix(policy, ids_BP[[0, 0]], mask_BP[[0, 0]]) == int(mask_BP[0].sum()) - 1
    )  # a logit is asked for
    if fault == "window":
        monkeypatch.setattr(decoding, "window", lambda model: 4)
    elif fault == "sharded":
        monkeypatch.setattr(type(policy), "sharded", True)
    elif fault == "family":
        monkeypatch.setattr(decoding, "unshared", lambda model: "of no family")
    else:
        ids_BP, mask_BP = ids_BP[:1], mask_BP[:1]
    assert decoding._prefix(policy, ids_BP, mask_BP) == 0


def test_the_head_reads_prompts_from_one_piece(policy: Policy, prompts: PromptBatch) -> None:
    """From a cut a CPU copies the head for every prompt in bfloat16: most of the time of a short rollout."""
    pieces = []
    head = policy.model.get_output_embeddings()
    watched = head.register_forward_pre_hook(lambda head, args: pieces.append(args[0].is_contiguous()))
    sample(policy, prompts, SAMPLING, seed=1)
    watched.remove()
    assert len(pieces) > 1 and all(pieces)


def test_products_of_onednn_draw_the_same(
    policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sample(policy, prompts, SAMPLING, seed=1)
    rows, multiply = [], products.multiply

    def multiply_seen(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        rows.append((x.numel() // x.shape[-1], weight_NK.is_mkldnn))
        return multiply(x, weight_NK, bias_N)

    for each in (products, merging):
        monkeypatch.setattr(each, "multiply", multiply_seen)
    monkeypatch.setattr(products, "_LEAST_WEIGHTS", 0)
    found = sample(policy, prompts, SAMPLING, seed=1)
    assert ids(found) == ids(plain)
    torch.testing.assert_close(found.logprobs_NT, plain.logprobs_NT, rtol=1e-4, atol=1e-5)
    # The adapted weights are packed; the head lies as it did, and is multiplied with the last of every prompt.
    assert {packed for count, packed in rows if count == 12} == {True, False}
    assert {packed for count, packed in rows if count > 12} == {True}
    assert not any("forward" in vars(module) for module in policy.model.modules())


def test_a_model_is_proven_by_the_products_that_train(
    policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN rounds a head's products otherwise, which would pass for logits that are no linear of hidden states."""
    multiply = products.multiply
    for each in (products, merging):
        monkeypatch.setattr(each, "multiply", lambda *args, **named: multiply(*args, **named) * (1 + 1e-6))
    monkeypatch.setattr(products, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(policy, "_way", None)
    monkeypatch.setattr(policy, "decoders", {})
    sample(policy, prompts, SAMPLING, seed=1)
    assert policy._way == "shared"


def test_slots_count_what_was_drawn_for_nothing(policy: Policy, prompts: PromptBatch) -> None:
    rollouts = sample(policy, prompts, SAMPLING, seed=1)
    tokens = int(rollouts.sequences.completion_mask_NT.sum())
    assert tokens <= rollouts.slots <= rollouts.sequences.completion_mask_NT.numel()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_generations", 0),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("engine", "vllm"),
    ],
)
def test_settings_are_checked(field: str, value: float | str) -> None:
    with pytest.raises(UserError, match=rf"sampling\.{field} is {value}"):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_the_text_of_a_completion_is_its_answer(policy: Policy, prompts: PromptBatch) -> None:
    """A thought that the prompt opened and the output never ends has none; it counts for one prompt alone."""
    first, *others = prompts.examples
    thinking = replace(prompts, examples=(replace(first, prompt=first.prompt + "<think>\n"), *others))
    plain, thought = (sample(policy, batch, SAMPLING, seed=1).completions for batch in (prompts, thinking))
    assert all(one.text for one in plain[:4])
    assert [one.text for one in thought] == [""] * 4 + [one.text for one in plain[4:]]
