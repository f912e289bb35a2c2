"""The loss against numbers worked out by hand, the written formula, and every way of cutting a window up."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsemrl.modules.losses import (
    Estimator,
    Level,
    LossSettings,
    LossType,
    WindowCounts,
    active_mask,
    likelihood_loss,
    packed_policy_loss,
    policy_loss,
    token_weights,
)
from lsemrl.modules.windows import over_windows
from lsemrl.types import LossOutput, UserError

MAX_LENGTH = 6
LOSS_TYPES: tuple[LossType, ...] = get_args(LossType)
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
LEVELS: tuple[Level, ...] = get_args(Level)
KLS: list[tuple[Estimator, float]] = [("k1", 0.5), ("k2", 0.5), ("k3", 0.5), ("k3", 0.0)]
EVERY_LOSS = [
    LossSettings(
        loss_type=loss_type,
        importance_sampling_level=level,
        kl_estimator=estimator,
        beta=beta,
        epsilon_high=0.3,
        delta=1.6,
    )
    for loss_type, level, (estimator, beta) in itertools.product(LOSS_TYPES, LEVELS, KLS)
]
every_loss = pytest.mark.parametrize(
    "loss", EVERY_LOSS, ids=lambda x: f"{x.loss_type}-{x.importance_sampling_level}-{x.kl_estimator}-{x.beta}"
)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The rows of one optimizer window; float64, so that only the weights round."""

    new_NT: Tensor
    old_NT: Tensor
    ref_NT: Tensor
    advantages_N: Tensor
    mask_NT: Tensor

    def rows(self, index: Tensor) -> Window:
        return Window(**{name: value[index] for name, value in vars(self).items()})

    def padded(self, columns: int, junk: float) -> Window:
        """The same window with `columns` more columns of junk."""

        def pad(values_NT: Tensor, value: float | bool) -> Tensor:
            return torch.nn.functional.pad(values_NT, (0, columns), value=value)

        return replace(
            self,
            new_NT=pad(self.new_NT, junk),
            old_NT=pad(self.old_NT, junk),
            ref_NT=pad(self.ref_NT, junk),
            mask_NT=pad(self.mask_NT, False),
        )

    def loss(
        self,
        loss: LossSettings,
        weights_NT: Tensor | None = None,
        counts: WindowCounts | None = None,
    ) -> tuple[LossOutput, Tensor]:
        """The output and its gradient; these rows are the whole window unless told otherwise."""
        if weights_NT is None:
            weights_NT = token_weights(self.mask_NT, loss.loss_type, MAX_LENGTH, counts)
        new_NT = self.new_NT.clone().requires_grad_()
        output = policy_loss(
            new_NT,
            self.old_NT,
            self.ref_NT,
            self.advantages_N,
            self.mask_NT,
            weights_NT,
            loss,
            WindowCounts.of(self.mask_NT) if counts is None else counts,
        )
        output.loss.backward()  # type: ignore[no-untyped-call]
        assert new_NT.grad is not None
        return output, new_NT.grad


def window(seed: int, rows: int = 4, length: int = 3) -> Window:
    """Ratios on both sides of every clip, rows of any length down to 0, masks with holes."""
    generator = torch.Generator().manual_seed(seed)
    old_NT, ref_NT, change_NT = -3 * torch.rand(3, rows, length, generator=generator, dtype=torch.float64)
    return Window(
        new_NT=old_NT + (change_NT + 1.5) / 2,
        old_NT=old_NT,
        ref_NT=ref_NT,
        advantages_N=torch.randn(rows, generator=generator, dtype=torch.float64),
        mask_NT=torch.rand(rows, length, generator=generator) < 0.7,
    )


def by_ratio(ratio: list[list[float]], advantages: list[float], mask: list[list[int]]) -> Window:
    """A window with the given ratios of new to old policy, and a reference that is the new policy."""
    new_NT = torch.tensor(ratio, dtype=torch.float64).log() - 1
    return Window(
        new_NT=new_NT,
        old_NT=torch.full_like(new_NT, -1.0),
        ref_NT=new_NT,
        advantages_N=torch.tensor(advantages, dtype=torch.float64),
        mask_NT=torch.tensor(mask, dtype=torch.bool),
    )


def numbers(output: LossOutput) -> dict[str, float]:
    return {name: value.item() for name, value in output.metrics.items()}


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected).double(), rtol=1e-6, atol=1e-7)


# Row 1, A = 1: ratio 1.5 earns only 1.2, no gradient; ratio .5 earns .5, gradient -.5 (.8 would flatter).
# Row 2, A = -2: ratio .9 costs 1.8, gradient 1.8; its second token is padding.
HAND = by_ratio([[1.5, 0.5], [0.9, 7.0]], [1.0, -2.0], [[1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("loss_type", "value", "gradient"),
    [
        # Rows: (-1.2 - .5) / 2 = -.85 and 1.8 / 1; their mean .475.
        ("grpo", 0.475, [[0, -0.5 / 4], [1.8 / 2, 0]]),
        # Tokens: (-1.2 - .5 + 1.8) / 3.
        ("dapo", 0.1 / 3, [[0, -0.5 / 3], [1.8 / 3, 0]]),
        ("bnpo", 0.1 / 3, [[0, -0.5 / 3], [1.8 / 3, 0]]),
        # 2 rows of at most 6 tokens: .1 / 12.
        ("dr_grpo", 0.1 / 12, [[0, -0.5 / 12], [1.8 / 12, 0]]),
    ],
)
def test_two_by_two_by_hand(loss_type: LossType, value: float, gradient: list[list[float]]) -> None:
    output, grad = HAND.loss(LossSettings(loss_type=loss_type, beta=0.0))
    close(output.loss, value)
    close(grad, gradient)
    assert output.metrics["clip_ratio/high_mean"] == pytest.approx(1 / 3)  # one of three tokens
    assert output.metrics["clip_ratio/low_mean"] == 0
    assert output.metrics["clip_ratio/region_mean"] == pytest.approx(1 / 3)
    assert output.metrics["kl"] == 0


def test_sequence_level_by_hand() -> None:
    # Row 1: sqrt(1.5 * .5) = .8660 > .8, unclipped. Each token moves its log by half, and the row counts half.
    output, grad = HAND.loss(LossSettings(loss_type="grpo", importance_sampling_level="sequence", beta=0.0))
    root = math.sqrt(0.75)
    close(output.loss, (-root + 1.8) / 2)
    close(grad, [[-root / 4, -root / 4], [1.8 / 2, 0]])
    assert output.metrics["clip_ratio/region_mean"] == 0


def test_sequence_level_clips_and_counts_rows() -> None:
    # sqrt(2 * 2) = 2 > 1.2 with A > 0: that whole row is cut, 1 row of 2 (2 tokens of 3 would be .67).
    output, grad = by_ratio([[2.0, 2.0], [0.9, 1.0]], [1.0, -2.0], [[1, 1], [1, 0]]).loss(
        LossSettings(loss_type="grpo", importance_sampling_level="sequence", beta=0.0)
    )
    close(output.loss, (-1.2 + 1.8) / 2)
    close(grad, [[0, 0], [1.8 / 2, 0]])
    assert output.metrics["clip_ratio/high_mean"] == 0.5


def test_low_clip_by_hand() -> None:
    # A = -2, ratio .5: clipped up to .8, loss 1.6, no gradient left; one token of two.
    output, grad = by_ratio([[0.5, 1.0]], [-2.0], [[1, 1]]).loss(LossSettings(beta=0.0))
    close(output.loss, (1.6 + 2.0) / 2)
    close(grad, [[0, 1.0]])
    assert output.metrics["clip_ratio/low_mean"] == output.metrics["clip_ratio/region_mean"] == 0.5
    assert output.metrics["clip_ratio/high_mean"] == 0


def test_delta_bounds_what_the_clip_leaves_open() -> None:
    bad = by_ratio([[5.0, 1.5]], [-1.0], [[1, 1]])
    output, grad = bad.loss(LossSettings(beta=0.0))
    close(output.loss, (5.0 + 1.5) / 2)
    close(grad, [[2.5, 0.75]])
    output, grad = bad.loss(LossSettings(beta=0.0, delta=3.0))
    close(output.loss, (3.0 + 1.5) / 2)
    close(grad, [[0, 0.75]])
    # A good completion is bounded by 1 + epsilon already.
    good = replace(bad, advantages_N=-bad.advantages_N)
    close(good.loss(LossSettings(beta=0.0, delta=3.0))[0].loss, -1.2)


def test_epsilon_high_moves_only_the_upper_clip() -> None:
    both = by_ratio([[1.25, 0.75], [1.25, 0.75]], [1.0, -1.0], [[1, 1], [1, 1]])
    loss = LossSettings(beta=0.0, epsilon_high=0.28)
    output, grad = both.loss(loss)
    # A = 1: -1.25 (free up to 1.28), -.75; A = -1: 1.25, .8 (clipped at 1 - .2).
    close(output.loss, (-1.25 - 0.75 + 1.25 + 0.8) / 4)
    close(grad, [[-1.25 / 4, -0.75 / 4], [1.25 / 4, 0]])
    assert both.loss(LossSettings(beta=0.0))[0].metrics["clip_ratio/high_mean"] == 0.25
    assert output.metrics["clip_ratio/high_mean"] == 0
    assert output.metrics["clip_ratio/low_mean"] == 0.25


@pytest.mark.parametrize(
    ("estimator", "kl", "slope"),
    [("k1", -math.log(2), 1.0), ("k2", math.log(2) ** 2 / 2, -math.log(2)), ("k3", 1 - math.log(2), -1.0)],
)
def test_kl_by_hand(estimator: Estimator, kl: float, slope: float) -> None:
    """The reference finds the token twice as likely: d = log 2. Slopes in d: -1, d, exp(d) - 1; d falls with log p."""
    apart = by_ratio([[1.0]], [0.0], [[1]])
    apart = replace(apart, ref_NT=apart.new_NT + math.log(2))
    output, grad = apart.loss(LossSettings(beta=0.5, kl_estimator=estimator))
    close(output.loss, 0.5 * kl)
    close(grad, [[0.5 * slope]])
    close(output.metrics["kl"], kl)
    without, grad = apart.loss(LossSettings(beta=0.0, kl_estimator=estimator))
    assert without.loss == grad.abs().sum() == 0
    close(without.metrics["kl"], kl)  # still measured


def by_the_book(w: Window, loss: LossSettings) -> float:
    """The written formulas, a token at a time, in plain floats."""
    rows = [[t for t, active in enumerate(row) if active] for row in w.mask_NT.tolist()]
    total = 0.0
    for i, tokens in enumerate(rows):
        logs = [float(w.new_NT[i, t] - w.old_NT[i, t]) for t in tokens]
        for at, t in enumerate(tokens):
            log = logs[at] if loss.importance_sampling_level == "token" else sum(logs) / len(logs)
            ratio, advantage = math.exp(log), float(w.advantages_N[i])
            high = loss.epsilon if loss.epsilon_high is None else loss.epsilon_high
            clipped = max(1 - loss.epsilon, min(ratio, 1 + high))
            bounded = ratio if loss.delta is None else min(ratio, loss.delta)
            d = float(w.ref_NT[i, t] - w.new_NT[i, t])
            kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[loss.kl_estimator]
            divisor = {
                "grpo": len(tokens) * len(rows),
                "bnpo": sum(map(len, rows)),
                "dapo": sum(map(len, rows)),
                "dr_grpo": len(rows) * MAX_LENGTH,
            }[loss.loss_type]
            total += (-min(bounded * advantage, clipped * advantage) + loss.beta * kl) / divisor
    return total


@every_loss
def test_value_is_the_written_formula(loss: LossSettings) -> None:
    for seed in range(8):
        close(window(seed).loss(loss)[0].loss, by_the_book(window(seed), loss))


@every_loss
def test_gradient_is_that_of_the_value(loss: LossSettings) -> None:
    w = window(0)
    weights_NT = token_weights(w.mask_NT, loss.loss_type, MAX_LENGTH)

    def value(new_NT: Tensor) -> Tensor:
        counts = WindowCounts.of(w.mask_NT)
        return policy_loss(new_NT, w.old_NT, w.ref_NT, w.advantages_N, w.mask_NT, weights_NT, loss, counts).loss

    assert torch.autograd.gradcheck(value, w.new_NT.clone().requires_grad_())


seeds = st.integers(0, 2**16)
losses = st.sampled_from(EVERY_LOSS)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, loss=losses, cut=st.lists(st.integers(0, 4), min_size=5, max_size=5))
def test_any_cut_into_micro_batches_adds_up_to_the_window(seed: int, loss: LossSettings, cut: list[int]) -> None:
    """Field notes 1 and 2: losses are added, gradients accumulate, and nothing is divided again."""
    w = window(seed, rows=5)
    whole, gradient = w.loss(loss)
    weights_NT, counts = token_weights(w.mask_NT, loss.loss_type, MAX_LENGTH), WindowCounts.of(w.mask_NT)
    total, metrics, pieces = torch.zeros(()), dict.fromkeys(whole.metrics, 0.0), torch.zeros_like(gradient)
    for micro_batch in set(cut):  # any assignment of rows, in any order, of any sizes
        index = torch.tensor([row for row, part in enumerate(cut) if part == micro_batch])
        output, grad = w.rows(index).loss(loss, weights_NT[index], counts)
        total = total + output.loss
        pieces[index] = grad
        metrics = {name: metrics[name] + value for name, value in numbers(output).items()}
    close(total, whole.loss)
    close(pieces, gradient)
    assert metrics == pytest.approx(numbers(whole), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, loss=losses, on_policy=st.booleans(), cuts=st.sets(st.integers(1, 29)))
def test_slices_of_packed_tokens_add_up_to_the_window(
    seed: int, loss: LossSettings, on_policy: bool, cuts: set[int]
) -> None:
    w = window(seed, rows=5)
    w = replace(w, old_NT=w.new_NT) if on_policy else w
    weights_NT, counts = token_weights(w.mask_NT, loss.loss_type, MAX_LENGTH), WindowCounts.of(w.mask_NT)
    whole, gradient = w.loss(loss)
    lengths = w.mask_NT.sum(dim=1).tolist()
    loss_fn = packed_policy_loss(
        None if on_policy else w.old_NT[w.mask_NT],
        w.ref_NT[w.mask_NT],
        w.advantages_N[:, None].expand_as(w.mask_NT)[w.mask_NT],
        w.mask_NT[w.mask_NT],
        weights_NT[w.mask_NT],
        lengths,
        loss,
        counts,
    )
    ends = {at for at in cuts if at < sum(lengths)}
    if loss.importance_sampling_level == "sequence":
        ends &= set(itertools.accumulate(lengths))
    logprobs_M = w.new_NT[w.mask_NT].clone().requires_grad_()
    entropy_M = torch.rand(len(logprobs_M), dtype=torch.float64)
    total, metrics = torch.zeros(()), dict.fromkeys(whole.metrics, 0.0) | {"entropy": 0.0}
    for start, stop in itertools.pairwise(sorted({0, *ends, len(logprobs_M)})):
        piece, found = loss_fn(slice(start, stop), logprobs_M[start:stop], entropy_M[start:stop])
        total = total + piece
        metrics = {name: metrics[name] + float(value) for name, value in found.items()}
    close(total, whole.loss)
    close(torch.autograd.grad(total, logprobs_M)[0], gradient[w.mask_NT])
    assert metrics == pytest.approx(numbers(whole) | {"entropy": float(entropy_M.mean())}, abs=1e-6)


def test_the_mean_of_micro_batch_means_would_be_wrong() -> None:
    """Field note 1, by hand: ratios 1, advantages -4 (one token) and 0 (three tokens), in micro-batches of a row."""
    w = by_ratio([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [-4.0, 0.0], [[1, 0, 0], [1, 1, 1]])
    loss = LossSettings(beta=0.0)
    weights_NT, counts = token_weights(w.mask_NT, "dapo", MAX_LENGTH), WindowCounts.of(w.mask_NT)
    first, second = (w.rows(torch.tensor([row])) for row in (0, 1))
    parts = first.loss(loss, weights_NT[:1], counts)[0].loss, second.loss(loss, weights_NT[1:], counts)[0].loss
    close(parts[0] + parts[1], 1.0)  # 4 / 4 tokens
    close((first.loss(loss)[0].loss + second.loss(loss)[0].loss) / 2, 2.0)  # (4 / 1 + 0 / 3) / 2: not this


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    loss=losses,
    columns=st.integers(0, 4),
    junk=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1e30]),
)
def test_padding_changes_nothing_whatever_it_holds(seed: int, loss: LossSettings, columns: int, junk: float) -> None:
    w = window(seed)
    output, gradient = w.loss(loss)
    padded, grad = w.padded(columns, junk).loss(loss)
    close(padded.loss, output.loss)
    close(grad[:, :3], gradient)
    assert not grad[:, 3:].any()
    assert numbers(padded) == pytest.approx(numbers(output), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, loss=losses, order=st.permutations(range(4)))
def test_row_order_does_not_matter(seed: int, loss: LossSettings, order: list[int]) -> None:
    w, index = window(seed), torch.tensor(order)
    output, gradient = w.loss(loss)
    shuffled, grad = w.rows(index).loss(loss)
    close(shuffled.loss, output.loss)
    close(grad, gradient[index])


@settings(max_examples=40, deadline=None)
@given(seed=seeds, loss=losses, first=st.integers(1, 5))
def test_averaging_over_ranks_gives_the_window_s_gradient(seed: int, loss: LossSettings, first: int) -> None:
    """Two ranks of unequal load, each with its own share and the summed counts; DDP takes the mean."""
    w = window(seed, rows=6)
    whole, gradient = w.loss(loss)
    counts, gradients, total = WindowCounts.of(w.mask_NT), [], 0.0
    ranks = [torch.arange(first), torch.arange(first, 6)]
    for index in ranks:
        output, grad = w.rows(index).loss(loss, counts=counts)
        gradients.append(torch.zeros_like(gradient).index_copy(0, index, len(ranks) * grad))
        total += output.loss.item()
    if loss.loss_type == "bnpo":  # by definition the ranks' own token means, here weighted by their rows
        means = [w.rows(index).loss(loss)[0].loss.item() for index in ranks]
        assert total == pytest.approx((first * means[0] + (6 - first) * means[1]) / 6, abs=1e-6)
    else:
        assert total == pytest.approx(whole.loss.item(), abs=1e-6)
        close(torch.stack(gradients).mean(dim=0), gradient)


POISON = [math.nan, math.inf, -math.inf]


@every_loss
@pytest.mark.parametrize("poison", POISON)
def test_masked_positions_never_leak(loss: LossSettings, poison: float) -> None:
    clean = window(3)
    assert 0 < clean.mask_NT.sum() < clean.mask_NT.numel()
    output, gradient = clean.loss(loss)
    for names in (["new_NT"], ["old_NT"], ["ref_NT"], ["new_NT", "old_NT", "ref_NT"]):
        dirty = replace(clean, **{n: getattr(clean, n).masked_fill(~clean.mask_NT, poison) for n in names})
        poisoned, grad = dirty.loss(loss)
        assert torch.equal(poisoned.loss, output.loss)
        assert torch.equal(grad, gradient)
        assert numbers(poisoned) == numbers(output)


def test_windows_weigh_what_they_measured_and_nothing_is_no_number() -> None:
    def window(value: float, rows: int, tokens: int) -> tuple[dict[str, Tensor], WindowCounts]:
        names = ("loss", "kl", "entropy", "clip_ratio/region_mean", "grad_norm")
        return dict.fromkeys(names, torch.tensor(value)), WindowCounts(rows=rows, tokens=tokens)

    windows, empty = [window(1.0, 4, 30), window(2.0, 4, 10), window(0.0, 4, 0)], window(0.0, 4, 0)
    by_tokens = over_windows(windows, LossSettings())
    assert by_tokens == {**dict.fromkeys(by_tokens, torch.tensor(1.25)), "grad_norm": torch.tensor(1.0)}
    by_rows = over_windows(windows, LossSettings(importance_sampling_level="sequence", loss_type="grpo"))
    assert by_rows["loss"] == by_rows["clip_ratio/region_mean"] == 1.0 and by_rows["kl"] == 1.25
    assert {name for name, value in over_windows([empty] * 2, LossSettings()).items() if value.isnan()} == {
        *by_tokens
    } - {"grad_norm"}


@every_loss
def test_windows_are_as_one_also_where_one_was_cut_throughout(loss: LossSettings) -> None:
    one = window(3, rows=8)
    one.mask_NT[4:] = False
    first, second = one.rows(torch.arange(4)), one.rows(torch.arange(4, 8))

    def told(w: Window) -> tuple[dict[str, Tensor], WindowCounts]:
        output, _ = w.loss(loss)
        return {**output.metrics, "loss": output.loss.detach()}, WindowCounts.of(w.mask_NT)

    whole = told(one)[0]
    assert whole["loss"] and whole["clip_ratio/region_mean"]
    for name, value in over_windows([told(first), told(second)], loss).items():
        close(value, whole[name])


@every_loss
def test_a_window_with_nothing_active_is_zero(loss: LossSettings) -> None:
    w = window(0)
    w = replace(w, mask_NT=torch.zeros_like(w.mask_NT), new_NT=torch.full_like(w.new_NT, math.nan))
    output, gradient = w.loss(loss)
    assert output.loss == 0
    assert not gradient.any()
    assert set(numbers(output).values()) == {0.0}


def test_a_row_with_nothing_active_still_counts_as_a_row() -> None:
    # One row of one token at A = -1, one empty row: grpo 1 / 2, dr_grpo 1 / 12, dapo 1 / 1; as in TRL.
    w = by_ratio([[1.0], [1.0]], [-1.0, 5.0], [[1], [0]])
    for loss_type, value in (("grpo", 1 / 2), ("dr_grpo", 1 / 12), ("dapo", 1.0), ("bnpo", 1.0)):
        close(w.loss(LossSettings(loss_type=loss_type, beta=0.0))[0].loss, value)  # type: ignore[arg-type]


@every_loss
def test_a_policy_gone_wild_gives_no_nan(loss: LossSettings) -> None:
    """Ratios of e^200 either way in float32, for good and bad completions, with and without a reference as far off."""
    new_NT = torch.tensor([[-0.5, -200.0]] * 2)
    wild = Window(
        new_NT=new_NT,
        old_NT=torch.tensor([[-200.5, -0.5]] * 2),
        ref_NT=torch.tensor([[-200.5, -0.5]] * 2),
        advantages_N=torch.tensor([1.0, -1.0]),
        mask_NT=torch.ones(2, 2, dtype=torch.bool),
    )
    for one in (loss, replace(loss, delta=None)):
        output, gradient = wild.loss(one)
        assert output.loss.isfinite()
        assert gradient.isfinite().all()


@every_loss
def test_only_the_policy_being_trained_gets_a_gradient(loss: LossSettings) -> None:
    w = window(0)
    new_NT, old_NT, ref_NT = (log_NT.clone().requires_grad_() for log_NT in (w.new_NT, w.old_NT, w.ref_NT))
    weights_NT, counts = token_weights(w.mask_NT, loss.loss_type, MAX_LENGTH), WindowCounts.of(w.mask_NT)
    output = policy_loss(new_NT, old_NT, ref_NT, w.advantages_N, w.mask_NT, weights_NT, loss, counts)
    gradients = torch.autograd.grad(output.loss, (new_NT, old_NT, ref_NT), allow_unused=True)
    assert [gradient is None for gradient in gradients] == [False, True, True]
    assert not any(value.requires_grad for value in output.metrics.values())


def test_first_step_s_gradient_is_reinforce() -> None:
    """Over every token of a small vocabulary, old = new: the gradient is that of the expected advantage, negated."""
    theta_V, earned_V = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta_V = theta_V.clone().requires_grad_()
    logprobs_V = theta_V.log_softmax(0)
    (expected_V,) = torch.autograd.grad(-(logprobs_V.exp() * earned_V).sum(), theta_V, retain_graph=True)
    actual_V = _expected_gradient(theta_V, logprobs_V, logprobs_V, earned_V, LossSettings(beta=0.0))
    close(actual_V, expected_V)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_which_kl_each_estimator_descends(estimator: Estimator) -> None:
    """What the help text of kl_estimator promises, over every token of a small vocabulary."""
    generator = torch.Generator().manual_seed(0)
    theta_V = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    ref_V = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    logprobs_V = theta_V.log_softmax(0)
    expected = {
        "k1": 0 * theta_V.sum(),
        "k2": (logprobs_V.exp() * (logprobs_V - ref_V)).sum(),
        "k3": (ref_V.exp() * (ref_V - logprobs_V)).sum(),
    }[estimator]
    (expected_V,) = torch.autograd.grad(expected, theta_V, retain_graph=True)
    loss = LossSettings(beta=1.0, kl_estimator=estimator)
    close(_expected_gradient(theta_V, logprobs_V, ref_V, torch.zeros(5, dtype=torch.float64), loss), expected_V)


def _expected_gradient(
    theta_V: Tensor, logprobs_V: Tensor, ref_V: Tensor, advantages_V: Tensor, loss: LossSettings
) -> Tensor:
    """The gradient in theta, averaged over the policy's own samples: one row of one token for each word."""
    mask_NT = torch.ones(len(theta_V), 1, dtype=torch.bool)
    weights_NT, counts = logprobs_V.exp().detach()[:, None], WindowCounts.of(mask_NT)
    columns = logprobs_V[:, None], logprobs_V[:, None], ref_V[:, None]
    output = policy_loss(*columns, advantages_V, mask_NT, weights_NT, loss, counts)
    return torch.autograd.grad(output.loss, theta_V)[0]


@pytest.mark.parametrize("level", LEVELS)
def test_a_dead_row_still_feels_the_kl_until_it_is_masked(level: Level) -> None:
    """Field note 16."""
    w = replace(window(1), advantages_N=torch.zeros(4, dtype=torch.float64))
    output, gradient = w.loss(LossSettings(beta=0.1, importance_sampling_level=level))
    close(output.loss, 0.1 * output.metrics["kl"])
    assert gradient[w.mask_NT].all()
    silenced = replace(w, mask_NT=w.mask_NT & (torch.arange(4) > 1)[:, None])
    output, gradient = silenced.loss(LossSettings(beta=0.1, importance_sampling_level=level))
    assert not gradient[:2].any()
    close(output.loss, 0.1 * output.metrics["kl"])  # both over the two rows left, without the others' tokens


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_ratio_never_enters_the_kl(estimator: Estimator) -> None:
    """Field note 17: the KL's value and gradient know neither the level nor the policy that sampled."""
    w = replace(window(2), advantages_N=torch.zeros(4, dtype=torch.float64))
    token, gradient = w.loss(LossSettings(kl_estimator=estimator))
    elsewhere = replace(w, old_NT=w.old_NT - 1)
    sequence, grad = elsewhere.loss(LossSettings(kl_estimator=estimator, importance_sampling_level="sequence"))
    assert torch.equal(sequence.metrics["kl"], token.metrics["kl"])
    assert torch.equal(grad, gradient)


def test_truncated_completions_leave_the_denominator_too() -> None:
    """Field note 3, by hand: 2 + 3 tokens at A = -1, the row of 3 cut off. Kept: 5 / 5; masked: 2 / 2, not 2 / 5."""
    w = by_ratio([[1.0] * 3, [1.0] * 3], [-1.0, -1.0], [[1, 1, 0], [1, 1, 1]])
    ended_N = torch.tensor([True, False])
    kept_NT, masked_NT = (active_mask(w.mask_NT, ended_N, choice) for choice in (False, True))
    assert torch.equal(kept_NT, w.mask_NT)
    assert masked_NT.tolist() == [[True, True, False], [False] * 3]
    output, gradient = replace(w, mask_NT=masked_NT).loss(LossSettings(beta=0.0))
    close(output.loss, 1.0)
    close(gradient, [[0.5, 0.5, 0], [0, 0, 0]])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_weights_by_hand(loss_type: LossType) -> None:
    mask_NT = torch.tensor([[True, True, False], [True, False, False]])
    world = WindowCounts(rows=4, tokens=10)  # another rank holds 2 rows of 7 tokens
    alone = {"grpo": (1 / 4, 1 / 2), "bnpo": (1 / 3, 1 / 3), "dr_grpo": (1 / 12, 1 / 12), "dapo": (1 / 3, 1 / 3)}
    shared = {"grpo": (1 / 8, 1 / 4), "bnpo": (1 / 6, 1 / 6), "dr_grpo": (1 / 24, 1 / 24), "dapo": (0.1, 0.1)}
    for counts, weights in ((None, alone), (world, shared)):
        first, second = weights[loss_type]
        actual_NT = token_weights(mask_NT, loss_type, MAX_LENGTH, counts)
        assert actual_NT.dtype == torch.float32
        close(actual_NT, [[first, first, 0], [second, 0, 0]])


def test_our_own_mistakes_are_caught() -> None:
    w = window(0)
    with pytest.raises(AssertionError, match="whole window"):
        token_weights(w.mask_NT, "dapo", MAX_LENGTH, WindowCounts(rows=1, tokens=1))
    weights_NT, counts = token_weights(w.mask_NT, "dapo", MAX_LENGTH), WindowCounts.of(w.mask_NT)
    with pytest.raises(AssertionError, match="reference"):
        policy_loss(w.new_NT, w.old_NT, None, w.advantages_N, w.mask_NT, weights_NT, LossSettings(), counts)
    free = LossSettings(beta=0.0)
    output = policy_loss(w.new_NT, w.old_NT, None, w.advantages_N, w.mask_NT, weights_NT, free, counts)
    assert "kl" not in output.metrics


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss_type": "ppo"}, "loss_type is 'ppo': choose one of grpo, bnpo, dr_grpo, dapo"),
        ({"kl_estimator": "k4"}, "kl_estimator is 'k4': choose one of k1, k2, k3"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level is 'word': choose one of token, sequence"),
        ({"epsilon": 0.0}, "epsilon is 0.0: set it between 0 and 1"),
        ({"epsilon": 1.0}, "epsilon is 1.0"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon_high": 0.0}, "epsilon_high is 0.0: set it above 0"),
        ({"epsilon_high": math.inf}, "epsilon_high is inf"),
        ({"delta": 1.2}, "delta is 1.2: set it above 1.2"),
        ({"delta": 1.25, "epsilon_high": 0.28}, "delta is 1.25: set it above 1.28"),
        ({"delta": math.nan}, "delta is nan"),
        ({"beta": -0.1}, "beta is -0.1: set it to 0 or more"),
        ({"beta": math.nan}, "beta is nan"),
    ],
)
def test_bad_settings_give_one_sentence(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        LossSettings(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_row_of_zero_advantage_clips_nothing() -> None:
    """Its gradient is none, wherever the ratio went."""
    ones_NT = torch.ones(2, 3)
    mask_NT = ones_NT.bool()
    output = policy_loss(
        torch.stack([ones_NT[0], -ones_NT[0]]),
        0 * ones_NT,
        None,
        torch.zeros(2),
        mask_NT,
        ones_NT,
        LossSettings(beta=0.0),
        WindowCounts.of(mask_NT),
    )
    assert output.loss == 0
    assert all(value == 0 for name, value in output.metrics.items() if name.startswith("clip_ratio/"))


def test_likelihood_falls_with_the_loss() -> None:
    logprobs_M = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    loss, metrics = likelihood_loss(torch.tensor([0.5, 0.25, 9.0]))(slice(0, 2), logprobs_M[:2], torch.zeros(2))
    loss.backward()
    assert (float(loss), metrics) == (1.0, {})
    assert logprobs_M.grad is not None and logprobs_M.grad.tolist() == [-0.5, -0.25, 0.0]
