"""Beam search: of each prompt's answers the likeliest by the mean log-prob of a token, as transformers finds them."""

from __future__ import annotations

import torch
from torch import Tensor

from lsemrl.modules.decoding import Decode, read_prompts
from lsemrl.modules.forward import check_finite
from lsemrl.modules.policy import Policy


def search(
    policy: Policy,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    decode: Decode,
    *,
    beams: int,
    answers: int,
    longest: int,
    eos: Tensor,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Follow the K likeliest beginnings of an answer to each of B prompts until no other end can be better.

    Args:
        policy: Whose answers are searched.
        prompt_ids_BP: int64, padded on the left.
        prompt_mask_BP: bool.
        decode: How a token is read.
        beams: K.
        answers: G, at most K.
        longest: Tokens of the longest answer.
        eos: Token ids that end one.

    Returns:
        Of the N = B * G likeliest answers, each prompt's falling: token ids [N, T], mask [N, T], and which of them
        ended by an EOS [N]; and how many tokens were read for them. Where fewer than G can be said, the likeliest
        comes again.
    """
    logits_NV, go_on = read_prompts(policy, prompt_ids_BP, prompt_mask_BP, beams, longest, decode)
    count, vocabulary, device = len(prompt_ids_BP), logits_NV.shape[-1], logits_NV.device
    # The best K that are complete, falling:
    means_BK = torch.full((count, beams), -torch.inf, device=device)
    whole_BKT = torch.zeros(count, beams, longest, dtype=torch.long, device=device)
    lengths_BK = torch.zeros(count, beams, dtype=torch.long, device=device)
    ended_BK = torch.zeros(count, beams, dtype=torch.bool, device=device)
    # Of the prompts that are still searched:
    prompts = torch.arange(count, device=device)
    said_NT = torch.zeros(count * beams, longest, dtype=torch.long, device=device)
    sums_BK = torch.full((count, beams), -torch.inf, device=device)
    sums_BK[:, 0] = 0.0  # all beams of a prompt begin alike
    # Where every EOS is likelier than all else, K beams must still go on.
    candidates = min(beams * max(2, 1 + len(eos)), beams * vocabulary)
    slots = 0
    for step in range(longest):
        slots += len(logits_NV)
        check_finite(bool(logits_NV.amax(dim=-1).isfinite().all()))
        logprobs_BKV = logits_NV.float().log_softmax(dim=-1).unflatten(0, (-1, beams))
        sums_BC, at_BC = (sums_BK[:, :, None] + logprobs_BKV).flatten(1).topk(candidates)
        row_BC = torch.arange(len(prompts), device=device)[:, None] * beams + at_BC // vocabulary
        token_BC = at_BC % vocabulary
        eos_BC = torch.isin(token_BC, eos)
        complete_BC = eos_BC if step + 1 < longest else torch.ones_like(eos_BC)

        mean_BK = (sums_BC / (step + 1)).masked_fill(~complete_BC, -torch.inf)[:, :beams]
        at = mean_BK.isfinite().any(dim=1).nonzero().squeeze(1)
        if len(at):
            of, ends_BK = prompts[at], eos_BC[at, :beams]
            tokens_BKT = said_NT[row_BC[at, :beams]]
            tokens_BKT[:, :, step] = token_BC[at, :beams]
            both_BC = torch.cat([means_BK[of], mean_BK[at]], dim=1)
            best_BK = both_BC.argsort(dim=1, descending=True, stable=True)[:, :beams]
            means_BK[of] = both_BC.gather(1, best_BK)
            lengths_BC = torch.cat([lengths_BK[of], torch.full_like(best_BK, step + 1)], dim=1)
            lengths_BK[of] = lengths_BC.gather(1, best_BK)
            ended_BK[of] = torch.cat([ended_BK[of], ends_BK], dim=1).gather(1, best_BK)
            whole_BKT[of] = torch.cat([whole_BKT[of], tokens_BKT], dim=1).take_along_dim(best_BK[:, :, None], dim=1)

        sums_BK, among_BK = sums_BC.masked_fill(complete_BC, -torch.inf).topk(beams)
        open_B = sums_BK[:, 0] / (step + 1) > means_BK[prompts, -1]
        sums_BK[~open_B] = -torch.inf
        going = int(open_B.sum())
        if step + 1 == longest or not going:
            break
        row_BK, token_BK = row_BC.gather(1, among_BK), token_BC.gather(1, among_BK)
        if going <= len(prompts) // 2:
            prompts, sums_BK, row_BK, token_BK = (each[open_B] for each in (prompts, sums_BK, row_BK, token_BK))
        said_NT = said_NT[row_BK.flatten()]
        said_NT[:, step] = token_BK.flatten()
        go_on.keep(row_BK.flatten())
        logits_NV = go_on(token_BK.flatten())
    said_BG = torch.where(means_BK.isfinite(), torch.arange(beams, device=device), 0)[:, :answers]
    length_N = lengths_BK.gather(1, said_BG).flatten()
    width = int(length_N.max())
    mask_NT = torch.arange(width, device=device) < length_N[:, None]
    ids_NT = whole_BKT[:, :, :width].take_along_dim(said_BG[:, :, None], dim=1).flatten(0, 1)
    return ids_NT, mask_NT, ended_BK.gather(1, said_BG).flatten(), slots
