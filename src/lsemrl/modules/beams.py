"""Beam search: of each prompt's answers the likeliest by the mean log-prob of a token, as transformers finds it."""

from __future__ import annotations

import torch
from torch import Tensor

from lsemrl.modules.decoding import Decode, read_prompts
from lsemrl.modules.forward import check_finite
from lsemrl.modules.policy import Policy


def search(
    policy: Policy, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, decode: Decode, beams: int, longest: int, eos: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Follow the K likeliest beginnings of an answer to each of B prompts until no other end can be better.

    Args:
        policy: Whose answers are searched.
        prompt_ids_BP: int64, padded on the left.
        prompt_mask_BP: bool.
        decode: How a token is read.
        beams: K.
        longest: Tokens of the longest answer.
        eos: Token ids that end one.

    Returns:
        Token ids [B, T] and mask [B, T] of the best answers, which of them ended by an EOS [B], and how many tokens
        were read for them.
    """
    logits_NV, go_on = read_prompts(policy, prompt_ids_BP, prompt_mask_BP, beams, longest, decode)
    count, vocabulary, device = len(prompt_ids_BP), logits_NV.shape[-1], logits_NV.device
    best_BT = torch.zeros(count, longest, dtype=torch.long, device=device)
    length_B = torch.zeros(count, dtype=torch.long, device=device)
    ended_B = torch.zeros(count, dtype=torch.bool, device=device)
    # Of the prompts that are still searched:
    prompts = torch.arange(count, device=device)
    said_NT = torch.zeros(count * beams, longest, dtype=torch.long, device=device)
    sums_BK = torch.full((count, beams), -torch.inf, device=device)
    sums_BK[:, 0] = 0.0  # all beams of a prompt begin alike
    means_BK = torch.full_like(sums_BK, -torch.inf)  # of the best K that are complete, falling
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

        complete_BK = (sums_BC / (step + 1)).masked_fill(~complete_BC, -torch.inf)[:, :beams]
        mean_B, among_B = complete_BK.max(dim=1)
        better = (mean_B > means_BK[:, 0]).nonzero().squeeze(1)
        prompt, candidate = prompts[better], (better, among_B[better])
        best_BT[prompt] = said_NT[row_BC[candidate]]
        best_BT[prompt, step], ended_B[prompt], length_B[prompt] = token_BC[candidate], eos_BC[candidate], step + 1
        means_BK = torch.cat([means_BK, complete_BK], dim=1).topk(beams).values

        sums_BK, among_BK = sums_BC.masked_fill(complete_BC, -torch.inf).topk(beams)
        open_B = sums_BK[:, 0] / (step + 1) > means_BK[:, -1]
        sums_BK[~open_B] = -torch.inf
        going = int(open_B.sum())
        if step + 1 == longest or not going:
            break
        row_BK, token_BK = row_BC.gather(1, among_BK), token_BC.gather(1, among_BK)
        if going <= len(prompts) // 2:
            prompts, sums_BK, means_BK, row_BK, token_BK = (
                each[open_B] for each in (prompts, sums_BK, means_BK, row_BK, token_BK)
            )
        said_NT = said_NT[row_BK.flatten()]
        said_NT[:, step] = token_BK.flatten()
        go_on.keep(row_BK.flatten())
        logits_NV = go_on(token_BK.flatten())
    width = int(length_B.max())
    mask_BT = torch.arange(width, device=device) < length_B[:, None]
    return best_BT[:, :width], mask_BT, ended_B, slots
