"""The clipped policy loss of one optimizer window, as pure functions on tensors.

A window is every row behind one optimizer step: all its micro-batches, on all ranks. `token_weights` settles once per
window how much each token counts; the loss is then `(loss_NT * weights_NT).sum()`, so that cutting the window into
micro-batches (by rows, never by columns), accumulating them, or padding them more cannot change it.

Several ranks: add up their `WindowCounts` and give the sum to both functions. Losses and metrics of the ranks then
ADD UP to the window's. DDP and FSDP average gradients instead, so multiply the loss, not the metrics, by the number of
ranks W before backward: mean over ranks of grad(W * loss_rank) = grad(sum of loss_rank).

Left out: the entropy bonus and entropy masks, which change the objective the paper states; cispo, sapo, luspo, vespo,
which no arm of the paper uses; and the KL times the ratio (TRL's use_bias_correction_kl, on there by default), which at
sequence level spreads one sequence's ratio over its tokens and is no KL gradient (TRL issue 6586). The largest ratio is
no metric, as it does not add up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lsemrl.types import LossOutput, UserError

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
Estimator = Literal["k1", "k2", "k3"]
Level = Literal["token", "sequence"]
Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

LossFunction = Callable[[slice, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From a slice of the tokens, their log-probs and their entropies: their share of a loss and of its metrics."""

# exp overflows float32 above 88, and the backward pass of a clipped token then multiplies inf by zero: one token
# turns every weight into NaN. e^20 is far outside any clip range, so nothing worth learning from is lost.
_LOG_LIMIT = 20.0


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The policy loss: what is clipped, what is averaged, and how strongly the reference holds.

    Raises:
        UserError: A field is out of range, or two fields contradict each other.
    """

    loss_type: LossType = "dapo"
    """What a token's loss is divided by. grpo: its row's length, then the rows (arXiv 2402.03300). dapo: the active
    tokens of the window over all ranks (arXiv 2503.14476). bnpo: the active tokens of the window on its own rank.
    dr_grpo: the rows times the longest completion allowed (arXiv 2503.20783)."""
    epsilon: float = 0.2
    """How far the ratio of new to old policy may fall below 1 before its gradient is cut; in (0, 1)."""
    epsilon_high: float | None = None
    """How far it may rise above 1, > 0; null for epsilon's value. DAPO recommends 0.28."""
    delta: float | None = None
    """A bound on the ratio of completions that did badly, which the clip leaves unbounded; > 1 + epsilon_high, or null
    (INTELLECT-2, arXiv 2505.07291)."""
    beta: float = 0.04
    """Weight of the KL to the reference policy, >= 0; with 0 no reference is needed."""
    kl_estimator: Estimator = "k3"
    """The KL of a sampled token, with d = log reference - log policy. k1: -d. k2: d^2 / 2. k3: exp(d) - d - 1, never
    negative, GRPO's. Their on-policy gradients differ: k2's is that of KL(policy || reference), k3's that of
    KL(reference || policy), and k1's is zero on average, noise only, so k1 is for comparison, not for training."""
    importance_sampling_level: Level = "token"
    """Whether each token has its own ratio or all tokens of a completion share their geometric mean (GSPO,
    arXiv 2507.18071, which goes with loss_type grpo)."""
    importance_sampling_mode: Correction | None = "sequence_mask"
    """How sampler and trainer, whose log-probs rounding tells apart in half or mixed precision, are reconciled: by the
    ratio of each token or each completion, truncated to importance_sampling_clip_max, or masked where it is above (as
    TRL's vllm_importance_sampling_mode); null for not at all. In float32 nothing is rounded."""
    importance_sampling_clip_max: float = 3.0
    """See importance_sampling_mode; > 0."""
    mask_truncated_completions: bool = False
    """Learn nothing, KL included, from completions cut at the length limit."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("loss_type", self.loss_type, get_args(LossType)),
            ("kl_estimator", self.kl_estimator, get_args(Estimator)),
            ("importance_sampling_level", self.importance_sampling_level, get_args(Level)),
            ("importance_sampling_mode", self.importance_sampling_mode, (*get_args(Correction), None)),
        ):
            if value not in choices:
                raise UserError(f"{name} is {value!r}: choose one of {', '.join(each or 'null' for each in choices)}")
        if not 0 < self.epsilon < 1:
            raise UserError(f"epsilon is {self.epsilon}: set it between 0 and 1, both excluded")
        if self.epsilon_high is not None and not 0 < self.epsilon_high < float("inf"):
            raise UserError(f"epsilon_high is {self.epsilon_high}: set it above 0, or to null for epsilon's value")
        if self.delta is not None and not self.upper_bound < self.delta < float("inf"):
            raise UserError(
                f"delta is {self.delta}: set it above {self.upper_bound} (1 + epsilon_high, or 1 + epsilon where "
                "that is null), or to null for no bound"
            )
        if not 0 < self.importance_sampling_clip_max < float("inf"):
            raise UserError(f"importance_sampling_clip_max is {self.importance_sampling_clip_max}: set it above 0")
        if not 0 <= self.beta < float("inf"):
            raise UserError(f"beta is {self.beta}: set it to 0 or more")

    @property
    def upper_bound(self) -> float:
        """Where the ratio of a good completion is clipped: 1 + epsilon_high."""
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


@dataclass(frozen=True, kw_only=True)
class WindowCounts:
    """What one optimizer window holds.

    Attributes:
        rows: Completions, those without an active token included.
        tokens: Active tokens.
    """

    rows: int
    tokens: int

    @classmethod
    def of(cls, mask_NT: Tensor) -> WindowCounts:
        """The counts of the rows at hand, to be added up over ranks."""
        return cls(rows=mask_NT.shape[0], tokens=int(mask_NT.sum()))


def active_mask(completion_mask_NT: Tensor, ended_N: Tensor, mask_truncated_completions: bool) -> Tensor:
    """The tokens the loss sees.

    Args:
        completion_mask_NT: bool, True up to and including the first EOS.
        ended_N: bool, which completions stopped by themselves; on any device.
        mask_truncated_completions: Whether the others are left out.

    Returns:
        bool [N, T]. Counts and weights are made from this mask, so what is left out is in no denominator of tokens.
    """
    if not mask_truncated_completions:
        return completion_mask_NT
    return completion_mask_NT & ended_N.to(completion_mask_NT.device)[:, None]


def token_weights(
    mask_NT: Tensor, loss_type: LossType, max_completion_length: int, counts: WindowCounts | None = None
) -> Tensor:
    """How much each token's loss counts in its optimizer window.

    grpo: 1 / (active tokens of its row * rows); bnpo: 1 / active tokens of this rank, times this rank's share of the
    rows; dr_grpo: 1 / (rows * max_completion_length); dapo: 1 / active tokens. As in TRL, a row without an active
    token adds nothing but still counts as a row. bnpo alone depends on how rows are dealt to ranks.

    Args:
        mask_NT: bool, the active tokens of ALL this rank's rows of the window; slice the result into micro-batches.
        loss_type: See `LossSettings`.
        max_completion_length: Tokens, > 0; matters to dr_grpo only.
        counts: The window's counts over all ranks; None when this rank is the only one.

    Returns:
        float32 [N, T], zero where the mask is False.
    """
    own = WindowCounts.of(mask_NT)
    window = own if counts is None else counts
    assert window.rows >= own.rows and window.tokens >= own.tokens, "counts are of the whole window, not of a part"
    match loss_type:
        case "grpo":
            return _row_mean(mask_NT, window)
        case "bnpo":
            return mask_NT.float() * (own.rows / max(window.rows, 1) / max(own.tokens, 1))
        case "dr_grpo":
            return mask_NT.float() / (max(window.rows, 1) * max_completion_length)
        case "dapo":
            return _token_mean(mask_NT, window)


def policy_loss(
    logprobs_NT: Tensor,
    old_logprobs_NT: Tensor,
    ref_logprobs_NT: Tensor | None,
    advantages_N: Tensor,
    mask_NT: Tensor,
    weights_NT: Tensor,
    settings: LossSettings,
    counts: WindowCounts,
    correction_NT: Tensor | None = None,
) -> LossOutput:
    """What some rows, a micro-batch, add to the loss and the metrics of their window.

    Per token -min(min(ratio, delta) * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A) + beta * KL, weighted and
    summed. A row of zero advantage still feels the KL: to silence it, clear its mask before making the weights.

    Args:
        logprobs_NT: float32 or float64, of the policy being trained; the only input that gets a gradient.
        old_logprobs_NT: Of the policy that sampled; `logprobs_NT` itself in a first, on-policy step.
        ref_logprobs_NT: Of the reference; None only with beta 0. With beta 0 it is still measured, for the log.
        advantages_N: One advantage a row.
        mask_NT: bool, active tokens; log-probs elsewhere may be anything, NaN and infinities included.
        weights_NT: These rows of `token_weights`.
        settings: See there; loss_type and mask_truncated_completions already did their work in mask and weights.
        counts: Those of the whole window, over all ranks: what the metrics are means over.
        correction_NT: What the policy term, but not the KL, is multiplied by (see `modules.correction`); None for 1.

    Returns:
        The loss, and metrics to be ADDED over micro-batches and ranks: `kl` (nats a token, when there is a reference)
        and `clip_ratio/{low,high,region}_mean`, shares in [0, 1] of tokens, or of rows at sequence level (as in TRL),
        whose gradient the clip cut because the ratio fell too low with A < 0, rose too high with A > 0, or either.
    """
    assert mask_NT.dtype == torch.bool and mask_NT.shape == logprobs_NT.shape == weights_NT.shape
    assert ref_logprobs_NT is not None or settings.beta == 0, "beta > 0 needs the reference's log-probs"
    # Before any arithmetic: a NaN that is only multiplied by zero, forward or backward, stays a NaN.
    logprobs_NT = logprobs_NT.masked_fill(~mask_NT, 0.0)
    log_ratio_NT = logprobs_NT - old_logprobs_NT.detach().masked_fill(~mask_NT, 0.0)
    if settings.importance_sampling_level == "sequence":
        length_N1 = mask_NT.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio_NT = (log_ratio_NT.sum(dim=1, keepdim=True) / length_N1).expand_as(log_ratio_NT)
        share_NT = _row_mean(mask_NT, counts)
    else:
        share_NT = _token_mean(mask_NT, counts)
    ratio_NT = log_ratio_NT.clamp(max=_LOG_LIMIT).exp()
    advantages_N1 = advantages_N[:, None]

    bounded_NT = ratio_NT if settings.delta is None else ratio_NT.clamp(max=settings.delta)
    clipped_NT = ratio_NT.clamp(1 - settings.epsilon, settings.upper_bound)
    loss_NT = -torch.min(bounded_NT * advantages_N1, clipped_NT * advantages_N1)
    if correction_NT is not None:
        loss_NT = loss_NT * correction_NT
    low_NT = (ratio_NT < 1 - settings.epsilon) & (advantages_N1 < 0)
    high_NT = (ratio_NT > settings.upper_bound) & (advantages_N1 > 0)
    metrics = {
        "clip_ratio/low_mean": (share_NT * low_NT).sum(),
        "clip_ratio/high_mean": (share_NT * high_NT).sum(),
        "clip_ratio/region_mean": (share_NT * (low_NT | high_NT)).sum(),
    }
    if ref_logprobs_NT is not None:
        kl_NT = _kl(logprobs_NT, ref_logprobs_NT.detach().masked_fill(~mask_NT, 0.0), settings.kl_estimator)
        metrics["kl"] = (_token_mean(mask_NT, counts) * kl_NT).sum()
        if settings.beta > 0:
            loss_NT = loss_NT + settings.beta * kl_NT
    return LossOutput(
        loss=(loss_NT * weights_NT).sum(),
        metrics={name: value.detach().float() for name, value in metrics.items()},
    )


def packed_policy_loss(
    old_logprobs_M: Tensor | None,
    ref_logprobs_M: Tensor | None,
    advantages_M: Tensor,
    mask_M: Tensor,
    weights_M: Tensor,
    lengths: Sequence[int],
    settings: LossSettings,
    counts: WindowCounts,
    correction_M: Tensor | None = None,
) -> LossFunction:
    """`policy_loss` for log-probs that come a slice at a time, completions one behind the other without padding.

    Args:
        old_logprobs_M: As in `policy_loss`; None in a first, on-policy step.
        ref_logprobs_M: As there.
        advantages_M: Of the completion that each token belongs to.
        mask_M: bool, active tokens.
        weights_M: Of the tokens in the window.
        lengths: Tokens of each completion.
        settings: As there. At sequence level slices must not cut a completion in two.
        counts: As there.
        correction_M: As there.

    Returns:
        From a slice of the M tokens, their log-probs and their entropies (nats): the loss, and the metrics of
        `policy_loss` with `entropy`, the mean over the window's tokens. Both add up over slices.
    """
    starts = [0, *accumulate(lengths)]

    def loss_fn(tokens: slice, logprobs_C: Tensor, entropy_C: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        def rows(values_C: Tensor) -> Tensor:
            if settings.importance_sampling_level == "token":
                return values_C[:, None]  # ratios know no siblings, so each token may pass for a row of its own
            pieces = lengths[bisect_left(starts, tokens.start) : bisect_left(starts, tokens.stop)]
            return pad_sequence(values_C.split(list(pieces)), batch_first=True)

        logprobs_NT = rows(logprobs_C)
        output = policy_loss(
            logprobs_NT,
            logprobs_NT if old_logprobs_M is None else rows(old_logprobs_M[tokens]),
            None if ref_logprobs_M is None else rows(ref_logprobs_M[tokens]),
            rows(advantages_M[tokens])[:, 0],
            rows(mask_M[tokens]),
            rows(weights_M[tokens]),
            settings,
            counts,
            None if correction_M is None else rows(correction_M[tokens]),
        )
        return output.loss, {**output.metrics, "entropy": (entropy_C * mask_M[tokens]).sum() / max(counts.tokens, 1)}

    return loss_fn


def likelihood_loss(weights_M: Tensor) -> LossFunction:
    """The negative log-likelihood of tokens that come a slice at a time, weighted by `token_weights`."""
    return lambda tokens, logprobs_C, entropy_C: (-(logprobs_C * weights_M[tokens]).sum(), {})


def _kl(logprobs_NT: Tensor, ref_logprobs_NT: Tensor, estimator: Estimator) -> Tensor:
    """The KL of the policy from the reference at each sampled token (J. Schulman, Approximating KL divergence)."""
    d_NT = ref_logprobs_NT - logprobs_NT
    match estimator:
        case "k1":
            return -d_NT
        case "k2":
            return d_NT**2 / 2
        case "k3":
            d_NT = d_NT.clamp(max=_LOG_LIMIT)
            return d_NT.exp() - d_NT - 1


def _row_mean(mask_NT: Tensor, counts: WindowCounts) -> Tensor:
    """Weights of the mean over the window's rows of each row's mean, float32."""
    return mask_NT.float() / mask_NT.sum(dim=1, keepdim=True).clamp(min=1) / max(counts.rows, 1)


def _token_mean(mask_NT: Tensor, counts: WindowCounts) -> Tensor:
    """Weights of the mean over the window's active tokens, float32."""
    return mask_NT.float() / max(counts.tokens, 1)
