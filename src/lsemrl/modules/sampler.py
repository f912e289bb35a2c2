"""Group sampling: G completions for each prompt, from the live weights.

The loop is our own so that what samples is exactly what is written here: no generation_config, no processors. A prompt
is encoded once and its keys and values are repeated for its group. A vLLM server can draw in its place (`served`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lsemrl.data.thoughts import answers
from lsemrl.modules.beams import search
from lsemrl.modules.decoding import Decode, Growing, read_prompts
from lsemrl.modules.engines import decoder
from lsemrl.modules.forward import check_finite, looking_back
from lsemrl.modules.policy import Policy
from lsemrl.modules.ranks import highest
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.served import served
from lsemrl.types import Completion, PromptBatch, Rollouts, Sequences

_NUCLEUS = 64
"""Tokens among which top-p is looked for first."""
_BLOCK = 64
"""Neighbours in the vocabulary of which the highest alone is compared first."""


@torch.inference_mode(False)  # Lightning validates in it, and to its tensors no later recording could write
def sample(
    policy: Policy,
    prompts: PromptBatch,
    sampling: Sampling,
    seed: int,
    parts: int = 1,
    stops: Sequence[int] = (),
    told: Callable[[Tensor], None] | None = None,
) -> Rollouts:
    """Draw G completions for each of B prompts, in eval mode and without gradients.

    Args:
        policy: Sampled with its current weights; its own generation settings play no part but for EOS ids.
        prompts: B prompts, padded on the left.
        sampling: How to draw.
        seed: The same seed, weights, prompts and parts give the same completions on one machine.
        stops: Token ids that end a completion beside EOS.
        parts: How many parts the prompts are answered in, one after the other; more need less memory.
        told: Called with the tokens of every step, one of each completion that is still in the batch; what it raises
            ends the sampling.
    """
    ends = sorted({*policy.eos_ids(), *stops})
    if sampling.engine == "vllm":
        ids_NT, mask_NT, logprobs_NT, ended_N = served(policy, sampling).draw(policy, prompts, sampling, seed, ends)
        slots = int(mask_NT.sum())
    else:
        with policy.gathered():
            decode = decoder(policy, prompts, sampling.engine).decode
            with policy.merged(onednn=decode is Growing):
                ids_NT, mask_NT, logprobs_NT, ended_N, slots = _draw(
                    policy, prompts, decode, sampling, seed, parts, ends, told
                )
    ids_NT = ids_NT.masked_fill(~mask_NT, policy.tokenizer.pad_token_id)
    group = sampling.num_generations
    examples = [example for example in prompts.examples for _ in range(group)]
    rows = zip(ids_NT.cpu(), mask_NT.cpu(), ended_N.tolist(), strict=True)
    # Not every token that ends a text is a special one, which decoding would leave out.
    said = [row[mask].tolist()[: -1 if ended else None] for row, mask, ended in rows]
    texts = answers(policy.tokenizer, said, [example.prompt for example in examples])
    return Rollouts(
        completions=tuple(
            Completion(text=text, ended=ended, example=example)
            for text, ended, example in zip(texts, ended_N.tolist(), examples, strict=True)
        ),
        sequences=Sequences(
            prompt_ids_BP=prompts.prompt_ids_BP,
            prompt_mask_BP=prompts.prompt_mask_BP,
            prompt_of_N=torch.arange(len(examples), device=ids_NT.device) // group,
            completion_ids_NT=ids_NT,
            completion_mask_NT=mask_NT,
        ),
        ended_N=ended_N,
        logprobs_NT=logprobs_NT.masked_fill(~mask_NT, 0.0),
        num_generations=group,
        slots=slots,
    )


def _draw(
    policy: Policy,
    prompts: PromptBatch,
    decode: Decode,
    sampling: Sampling,
    seed: int,
    parts: int,
    ends: list[int],
    told: Callable[[Tensor], None] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """What `_decode` gives, part by part."""
    generator = torch.Generator(prompts.prompt_ids_BP.device).manual_seed(seed)
    rows = zip(prompts.prompt_ids_BP.chunk(parts), prompts.prompt_mask_BP.chunk(parts), strict=True)
    with looking_back(policy.model):
        drawn = [_decode(policy, ids_BP, mask_BP, decode, sampling, generator, ends, told) for ids_BP, mask_BP in rows]
    *tokens, ended, slots = zip(*drawn, strict=True)
    width = max(mask_NT.shape[1] for mask_NT in tokens[1])
    ids_NT, mask_NT, logprobs_NT = (
        torch.cat([pad(part_NT, (0, width - part_NT.shape[1])) for part_NT in parts_NT]) for parts_NT in tokens
    )
    return ids_NT, mask_NT, logprobs_NT, torch.cat(ended), sum(slots)


def _decode(
    policy: Policy,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    decode: Decode,
    sampling: Sampling,
    generator: torch.Generator,
    ends: list[int],
    told: Callable[[Tensor], None] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Token ids_NT, mask_NT, logprobs_NT and ended_N of all N completions, and how many tokens were drawn for them."""
    group, device = sampling.num_generations, prompt_ids_BP.device
    eos = torch.tensor(ends, device=device)
    if sampling.num_beams > 1:
        ids_NT, mask_NT, ended_N, slots = search(
            policy,
            prompt_ids_BP,
            prompt_mask_BP,
            decode,
            beams=sampling.num_beams,
            answers=group,
            longest=sampling.max_new_tokens,
            eos=eos,
        )
        return ids_NT, mask_NT, torch.zeros_like(ids_NT, dtype=torch.float32), ended_N, slots
    # Sharded weights are gathered by all ranks together, so that none may stop before the others.
    together = policy.sharded and not policy.settings.gather_for_sampling
    longest = sampling.max_new_tokens
    logits_NV, go_on = read_prompts(policy, prompt_ids_BP, prompt_mask_BP, group, longest, decode)
    count = len(logits_NV)
    ids_NT = torch.zeros(count, longest, dtype=torch.long, device=device)
    mask_NT = torch.zeros_like(ids_NT, dtype=torch.bool)
    logprobs_NT = torch.zeros_like(ids_NT, dtype=torch.float32)
    ended_N = torch.zeros(count, dtype=torch.bool, device=device)
    rows = torch.arange(count, device=device)  # those still in the batch
    # A GPU is asked for the next token before it has said how many go on: it would idle while Python asks.
    late = 0 if together else _behind(device)
    unread: deque[Callable[[], list[int]]] = deque()
    slots = 0
    for step in range(longest):
        slots += len(rows)
        finite_N = logits_NV.amax(dim=-1).isfinite()
        # What is drawn of others is never seen, but must not break the device before it is told.
        logits_NV.masked_fill_(~finite_N[:, None], 0.0)
        token_N, logprobs_NT[rows, step] = draw(logits_NV.float(), sampling, generator)
        if told:
            told(token_N)
        open_N = ~ended_N[rows]
        ids_NT[rows, step], mask_NT[rows, step] = token_N, open_N
        ended_N[rows] |= torch.isin(token_N, eos)
        open_N = ~ended_N[rows]
        unread.append(_reader(torch.stack([open_N.sum(), finite_N.sum() - len(rows)])))
        going, wrong = unread.popleft()() if len(unread) > late else (len(rows), 0)
        check_finite(not wrong)
        if step + 1 == longest or not (highest(going, device) if together else going):
            break
        if 0 < going <= len(rows) // 2:  # it copies the cache: worth it by halves, not one by one
            open_rows = open_N.nonzero().squeeze(1)
            if not len(open_rows):  # the last ones ended meanwhile
                break
            go_on.keep(open_rows)
            rows, token_N = rows[open_rows], token_N[open_rows]
        logits_NV = go_on(token_N)
    for read in unread:
        check_finite(not read()[1])
    width = int(mask_NT.any(dim=0).sum())
    return ids_NT[:, :width], mask_NT[:, :width], logprobs_NT[:, :width], ended_N, slots


def _behind(device: torch.device) -> int:
    """Steps that may be asked for before the word on one is read."""
    return int(device.type == "cuda")


def _reader(numbers: Tensor) -> Callable[[], list[int]]:
    """What reads numbers without waiting for whatever the device is asked for after them."""
    if not numbers.is_cuda:
        return numbers.tolist
    there = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    there.copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[int]:
        copied.synchronize()
        return there.tolist()

    return read


def draw(logits_NV: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token a row from float32 logits: temperature, then top-k, then top-p, as everywhere in the field.

    Returns:
        Ids [N], and their log-probs [N] at the temperature, of which top-k and top-p know nothing; 0 without one.
    """
    if sampling.temperature == 0:
        return logits_NV.argmax(dim=-1), logits_NV.new_zeros(len(logits_NV))
    vocabulary = logits_NV.shape[-1]
    logits_NV = logits_NV / sampling.temperature
    probabilities_NV = logits_NV.softmax(dim=-1)
    if 0 < sampling.top_k < vocabulary:
        logits_NK, ids_NK = logits_NV.topk(sampling.top_k, dim=-1)
        kept_NK = _nucleus(logits_NK.softmax(dim=-1), sampling.top_p)
        token_N1 = ids_NK.gather(-1, torch.multinomial(kept_NK, 1, generator=generator))
    elif sampling.top_p < 1:
        # Sorting a whole vocabulary costs more than the model that filled it, and a nucleus is mostly small.
        width = min(_NUCLEUS, vocabulary)
        while True:
            probabilities_NK, ids_NK = _likeliest(probabilities_NV, width)
            if width == vocabulary or bool((probabilities_NK.sum(dim=-1) >= sampling.top_p).all()):
                break
            width = min(16 * width, vocabulary)
        kept_NK = _nucleus(probabilities_NK, sampling.top_p)
        token_N1 = ids_NK.gather(-1, torch.multinomial(kept_NK, 1, generator=generator))
    else:
        # One random number a row, where multinomial would draw one for every word of the vocabulary.
        sums_NV = probabilities_NV.cumsum(dim=-1, dtype=torch.float64)
        point_N1 = torch.rand(len(sums_NV), 1, generator=generator, device=sums_NV.device) * sums_NV[:, -1:]
        token_N1 = torch.searchsorted(sums_NV, point_N1, right=True)
    return token_N1[:, 0], probabilities_NV.gather(-1, token_N1)[:, 0].log()


def _likeliest(probabilities_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest probabilities of each row, falling, and their ids, as `topk` has them.

    They lie in the `count` blocks with the highest maxima, which are found in one pass over the vocabulary.
    """
    rows, vocabulary = probabilities_NV.shape
    if vocabulary < 2 * count * _BLOCK:
        return probabilities_NV.topk(count, dim=-1)
    if beyond := -vocabulary % _BLOCK:  # pad copies even by nothing
        probabilities_NV = pad(probabilities_NV, (0, beyond), value=-1.0)
    blocks_NBW = probabilities_NV.view(rows, -1, _BLOCK)
    block_NK = blocks_NBW.amax(dim=-1).topk(count, dim=-1).indices
    found_NM = blocks_NBW.gather(1, block_NK[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    likeliest_NK, at_NK = found_NM.topk(count, dim=-1)
    return likeliest_NK, block_NK.gather(1, at_NK // _BLOCK) * _BLOCK + at_NK % _BLOCK


def _nucleus(probabilities_NK: Tensor, top_p: float) -> Tensor:
    """Falling probabilities, those set to zero before which `top_p` was reached already."""
    beyond_NK = probabilities_NK.cumsum(dim=-1) - probabilities_NK >= top_p
    return probabilities_NK.masked_fill(beyond_NK, 0.0)
