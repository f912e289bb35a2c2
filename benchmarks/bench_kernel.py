"""The head of a language model: loss and gradient, and scoring without gradient, against others and against the floor.

    python benchmarks/bench_kernel.py
    python benchmarks/bench_kernel.py --tokens 4096 --hidden 4096 --vocabulary 128256
    PYTHONPATH=src python benchmarks/bench_kernel.py    # lsemrl not installed: torch alone will do, Triton on a GPU

Every system gets hidden states, a frozen head, targets, and what a GRPO loss needs (clip 0.2, KL penalty 0.04), and
gives a loss and the gradient to the hidden states (train), or log-probabilities (score). The floor is the bare
matmuls nobody can do without: two, or one. First each system does a slice of the problem against float64; one that is
too far off gets no time, and if it is ours, nothing is printed or written. Then all take turns, round by round.

Writes benchmarks/results/kernel_<device>.csv, a row for each system and number of tokens: medians and quartiles of
milliseconds, tokens per second, the median over the floor's, peak memory above the inputs in 10^6 bytes (CUDA only:
torch counts no allocations on a CPU), and the errors on the slice: of the loss (score: of any log-probability),
absolute; of the gradient, the largest anywhere over the largest gradient. A system that cannot run has the reason
in its note.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lsemrl.kernels import fused_policy_loss, reference, token_logprobs

CLIP, BETA = 0.2, 0.04
SLACK = 4.0
"""How many times the error of the eager formula in the same dtype a system may have."""
FARTHEST = 0.1
"""How far the gradient of the eager formula may be off; one of nothing but zeros would be off by 1."""
FLOOR_TOKENS = 8192
"""Rows of a bare matmul at a time, so that the floor fits into memory; larger ones are no faster."""
TRL_COLUMNS = 32_768
"""The vocabulary chunk that TRL's trainers use."""
COLUMNS = (
    *("dtype", "hidden", "vocabulary", "tokens", "kind", "system", "ms", "ms_q1", "ms_q3", "tokens_per_s"),
    *("times_floor", "peak_mb", "loss_error", "gradient_error", "note"),
)
SHOWN = (
    *(("ms", 9, ".2f"), ("tokens_per_s", 12, ",.0f"), ("times_floor", 8, ".2f")),
    *(("peak_mb", 10, ".0f"), ("loss_error", 11, ".1e"), ("gradient_error", 11, ".1e")),
)
Kind = Literal["train", "score"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the systems get; B sequences of T tokens make M."""

    hidden_MH: Tensor
    weight_VH: Tensor
    targets_M: Tensor
    old_M: Tensor
    ref_M: Tensor
    advantages_B: Tensor

    @property
    def length(self) -> int:
        """Tokens of a sequence, T."""
        return len(self.targets_M) // len(self.advantages_B)

    def first(self, tokens: int) -> Problem:
        """The first sequences, `tokens` tokens together."""
        return Problem(
            hidden_MH=self.hidden_MH[:tokens],
            weight_VH=self.weight_VH,
            targets_M=self.targets_M[:tokens],
            old_M=self.old_M[:tokens],
            ref_M=self.ref_M[:tokens],
            advantages_B=self.advantages_B[: tokens // self.length],
        )

    def loss(self, cut: slice, logprobs_C: Tensor, entropy_C: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What some of the tokens add to the loss, the mean over all."""
        tokens = len(self.targets_M)
        advantages_C = self.advantages_B.repeat_interleave(self.length, output_size=tokens)[cut]
        ratio_C = (logprobs_C - self.old_M[cut]).exp()
        policy_C = torch.min(ratio_C * advantages_C, ratio_C.clamp(1 - CLIP, 1 + CLIP) * advantages_C)
        d_C = self.ref_M[cut] - logprobs_C
        metrics = {} if entropy_C is None else {"entropy": entropy_C.sum() / tokens}
        return (BETA * (d_C.exp() - d_C - 1) - policy_C).sum() / tokens, metrics


@dataclass(frozen=True, kw_only=True)
class System:
    """Something to be timed.

    Attributes:
        name: As the table has it.
        kind: What it computes.
        run: Gives loss and gradient to the hidden states, or log-probabilities and None.
        truth: What `run` should give on a slice in float64; None for the floor, which computes nothing of use.
        missing: Why it cannot run here.
        note: What a reader must know to compare it.
    """

    name: str
    kind: Kind
    run: Callable[[Problem], tuple[Tensor, Tensor | None]]
    truth: Callable[[Problem], tuple[Tensor, Tensor | None]] | None
    missing: str = ""
    note: str = ""

    @property
    def ours(self) -> bool:
        """Whether an error of it is our own."""
        return self.name.startswith("lsemrl")


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far a system is from the truth on a slice."""

    loss: float
    gradient: float


def make_problem(
    tokens: int, length: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """Random numbers: logits with a standard deviation of 3, other policies within 0.1 nats.

    But every sixteenth token is clipped, and none is so near to the bounds that rounding decides which.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    hidden_MH = normal(tokens, hidden).to(dtype)
    weight_VH = (normal(vocabulary, hidden) * (3 / math.sqrt(hidden))).to(dtype)
    targets_M = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    with torch.no_grad():
        parts = zip(hidden_MH.split(256), targets_M.split(256), strict=True)
        logprobs_M = torch.cat([reference.token_logprobs(part_CH, weight_VH, ids_C)[0] for part_CH, ids_C in parts])
    apart_M = (0.1 * normal(tokens)).clamp(-0.1, 0.1)
    apart_M[::16] = 0.5 * normal(tokens)[::16].sign()
    return Problem(
        hidden_MH=hidden_MH.requires_grad_(),
        weight_VH=weight_VH,
        targets_M=targets_M,
        old_M=logprobs_M + apart_M,
        ref_M=logprobs_M + 0.1 * normal(tokens),
        advantages_B=normal(tokens // length),
    )


def systems(dtype: torch.dtype, device: torch.device, compiling: bool) -> list[System]:
    """Everything that is compared, in the order of the table."""
    cuda = device.type == "cuda"
    liger = "" if find_spec("liger_kernel") else "liger-kernel is not installed"
    trl = "" if find_spec("trl") else "trl is not installed"
    cross_entropy = "" if hasattr(torch.nn.functional, "linear_cross_entropy") else f"not in torch {torch.__version__}"
    uncompiled = "" if compiling else "--no-compile"
    compiled = torch.compile(naive_loss) if compiling else naive_loss
    own = [
        System(
            name=f"lsemrl fused_policy_loss, {str(stored).removeprefix('torch.')} logits",
            kind="train",
            run=lambda given, stored=stored: fused(given, stored),  # type: ignore[misc]
            truth=true_loss,
        )
        for stored in dict.fromkeys((dtype, torch.float32))
    ]
    return [
        System(name="two matmuls", kind="train", run=lambda given: bare(given, backward=True), truth=None),
        *own,
        System(name="lsemrl token_logprobs", kind="train", run=from_logprobs, truth=true_loss),
        System(name="naive", kind="train", run=lambda given: through(given, naive_loss), truth=true_loss),
        System(
            name="naive, compiled", kind="train", run=lambda given: through(given, compiled), truth=true_loss,
            missing=uncompiled,
        ),
        System(
            name="Liger chunked GRPO", kind="train", run=liger_chunked, truth=true_loss,
            missing=liger or uncompiled,
            note="as it comes: one sequence a chunk, loss compiled",
        ),
        System(
            name="Liger Triton GRPO, full logits", kind="train", run=liger_triton, truth=true_loss,
            missing=liger or ("" if cuda else "needs CUDA"),
            note="one hidden state more a sequence, which it leaves out itself",
        ),
        System(
            name="TRL chunked_logprob", kind="train", run=trl_chunked, truth=true_loss, missing=trl,
            note="" if cuda else "its Triton kernels need a GPU: this is its torch path",
        ),
        System(
            name="torch linear_cross_entropy", kind="train", run=cross_entropy_chunked, truth=true_cross_entropy,
            missing=cross_entropy, note="another loss: the mean cross-entropy, without weights for tokens",
        ),
        System(name="one matmul", kind="score", run=lambda given: bare(given, backward=False), truth=None),
        System(name="lsemrl token_logprobs, no gradient", kind="score", run=score, truth=true_logprobs),
        System(name="naive, no gradient", kind="score", run=naive_score, truth=true_logprobs),
        System(name="TRL chunked_logprob, no gradient", kind="score", run=trl_score, truth=true_logprobs, missing=trl),
    ]  # fmt: skip


def fused(given: Problem, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ours."""
    loss, _ = fused_policy_loss(given.hidden_MH, given.weight_VH, given.targets_M, given.loss, logits_dtype=stored)
    return loss, gradient(loss, given.hidden_MH)


def from_logprobs(given: Problem) -> tuple[Tensor, Tensor]:
    """Ours for a loss that cannot be cut into chunks."""
    logprobs_M, entropy_M = token_logprobs(given.hidden_MH, given.weight_VH, given.targets_M)
    loss, _ = given.loss(slice(None), logprobs_M, entropy_M)
    return loss, gradient(loss, given.hidden_MH)


def score(given: Problem) -> tuple[Tensor, None]:
    """Ours without gradient."""
    with torch.no_grad():
        return token_logprobs(given.hidden_MH, given.weight_VH, given.targets_M)[0], None


def bare(given: Problem, backward: bool) -> tuple[Tensor, Tensor | None]:
    """The floor: logits, and their way back to the hidden states."""
    with torch.no_grad():
        for part_CH in given.hidden_MH.split(FLOOR_TOKENS):
            logits_CV = part_CH @ given.weight_VH.t()
            if backward:
                logits_CV @ given.weight_VH
    return given.hidden_MH, None


def naive_logprobs(hidden_MH: Tensor, weight_VH: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """What trainers do who do not think of memory: the whole float32 log-softmax; and its entropies, no gradient."""
    all_logprobs_MV = (hidden_MH @ weight_VH.t()).float().log_softmax(dim=1)
    with torch.no_grad():
        entropy_M = -(all_logprobs_MV.exp() * all_logprobs_MV).sum(dim=1)
    return all_logprobs_MV.gather(1, targets_M[:, None])[:, 0], entropy_M


def naive_loss(given: Problem) -> Tensor:
    """The loss from whole matrices."""
    logprobs_M, entropy_M = naive_logprobs(given.hidden_MH, given.weight_VH, given.targets_M)
    return given.loss(slice(None), logprobs_M, entropy_M)[0]


def naive_score(given: Problem) -> tuple[Tensor, None]:
    """Log-probabilities from whole matrices."""
    with torch.no_grad():
        return naive_logprobs(given.hidden_MH, given.weight_VH, given.targets_M)[0], None


def through(given: Problem, loss_of: Callable[[Problem], Tensor]) -> tuple[Tensor, Tensor]:
    """A loss and its gradient by autograd."""
    loss = loss_of(given)
    return loss, gradient(loss, given.hidden_MH)


def liger_chunked(given: Problem) -> tuple[Tensor, Tensor]:
    """Liger's fused linear GRPO."""
    module = importlib.import_module("liger_kernel.chunked_loss")
    loss_of = module.LigerFusedLinearGRPOLoss(beta=BETA, epsilon_low=CLIP, epsilon_high=CLIP, loss_type="dapo")
    rows = (len(given.advantages_B), given.length)
    loss, _ = loss_of(
        given.hidden_MH.view(*rows, -1),
        given.weight_VH,
        given.targets_M.view(rows),
        torch.ones(rows, device=given.hidden_MH.device),
        given.advantages_B,
        ref_per_token_logps=given.ref_M.view(rows),
        old_per_token_logps=given.old_M.view(rows),
    )
    return loss, gradient(loss, given.hidden_MH)


def liger_triton(given: Problem) -> tuple[Tensor, Tensor]:
    """Liger's loss of logits that exist whole."""
    module = importlib.import_module("liger_kernel.transformers.grpo_loss")
    rows = (len(given.advantages_B), given.length)
    hidden_BTH = torch.nn.functional.pad(given.hidden_MH.view(*rows, -1), (0, 0, 0, 1))
    loss, _ = module.triton_grpo_loss(
        hidden_BTH @ given.weight_VH.t(),
        given.old_M.view(rows),
        given.ref_M.view(rows),
        given.targets_M.view(rows),
        given.advantages_B,
        completion_mask=torch.ones(rows, device=given.hidden_MH.device),
        temperature=1.0,
        beta=BETA,
        eps_low=CLIP,
        eps_high=CLIP,
        loss_type="dapo",
        reduce=True,
    )
    return loss, gradient(loss, given.hidden_MH)


def trl_logprobs(given: Problem) -> tuple[Tensor, Tensor]:
    """TRL's log-probabilities and entropies."""
    function = importlib.import_module("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    logprobs_M, entropy_M, *_ = function.apply(
        given.hidden_MH, given.weight_VH, None, given.targets_M, 1.0, TRL_COLUMNS, None, 1.0, ("entropy",)
    )
    return logprobs_M, entropy_M


def trl_chunked(given: Problem) -> tuple[Tensor, Tensor]:
    """TRL's log-probabilities under the same loss."""
    logprobs_M, entropy_M = trl_logprobs(given)
    loss, _ = given.loss(slice(None), logprobs_M, entropy_M.detach())
    return loss, gradient(loss, given.hidden_MH)


def trl_score(given: Problem) -> tuple[Tensor, None]:
    """TRL's log-probabilities without gradient."""
    with torch.no_grad():
        return trl_logprobs(given)[0], None


def cross_entropy_chunked(given: Problem) -> tuple[Tensor, Tensor]:
    """PyTorch's own fused head."""
    options = importlib.import_module("torch.nn").LinearCrossEntropyOptions()
    function = importlib.import_module("torch.nn.functional").linear_cross_entropy
    loss = function(given.hidden_MH, given.weight_VH, given.targets_M, options=options)
    return loss, gradient(loss, given.hidden_MH)


def true_logprobs(given: Problem) -> tuple[Tensor, None]:
    """In float64."""
    with torch.no_grad():
        return reference.token_logprobs(given.hidden_MH, given.weight_VH.double(), given.targets_M)[0], None


def true_loss(given: Problem) -> tuple[Tensor, Tensor]:
    """In float64."""
    hidden_MH = given.hidden_MH.detach().double().requires_grad_()
    loss, _ = reference.fused_policy_loss(hidden_MH, given.weight_VH.double(), given.targets_M, given.loss)
    return loss, gradient(loss, hidden_MH)


def true_cross_entropy(given: Problem) -> tuple[Tensor, Tensor]:
    """In float64."""
    hidden_MH = given.hidden_MH.detach().double().requires_grad_()
    logprobs_M, _ = reference.token_logprobs(hidden_MH, given.weight_VH.double(), given.targets_M)
    loss = -logprobs_M.mean()
    return loss, gradient(loss, hidden_MH)


def gradient(loss: Tensor, hidden_MH: Tensor) -> Tensor:
    """The backward pass."""
    return torch.autograd.grad(loss, hidden_MH)[0]


def errors_of(system: System, given: Problem) -> Errors:
    """A system against its truth; NaN counts as infinitely far."""
    assert system.truth is not None
    found, truth = system.run(given), system.truth(given)
    loss = _far(found[0], truth[0])
    if found[1] is None or truth[1] is None:
        return Errors(loss=loss, gradient=0.0)
    return Errors(loss=loss, gradient=_far(found[1], truth[1]) / float(truth[1].abs().max()))


def _far(found: Tensor, truth: Tensor) -> float:
    if found.shape != truth.shape:
        return math.inf
    far = float((found.detach().double() - truth.detach()).abs().max())
    return math.inf if math.isnan(far) else far


def limits_of(kind: Kind, given: Problem, ready: Sequence[System]) -> Errors:
    """The errors a system may have: some times those of the naive formula, and a few roundings at the least."""
    naive = next(system for system in ready if system.kind == kind and system.name.startswith("naive"))
    error = errors_of(naive, given)
    if not error.gradient <= FARTHEST:  # nor where it is no number
        raise ValueError(f"the gradient of {naive.name} is off by {error.gradient:.2g}, by which nothing can be judged")
    rounding = 8 * torch.finfo(torch.float32).eps
    own = torch.finfo(given.hidden_MH.dtype).eps
    return Errors(loss=SLACK * max(error.loss, rounding * 10), gradient=SLACK * max(error.gradient, own))


def timed(system: System, given: Problem, device: torch.device) -> float:
    """Milliseconds of one call."""
    _synchronize(device)
    started = time.perf_counter()
    system.run(given)
    _synchronize(device)
    return 1e3 * (time.perf_counter() - started)


def peak_mb(system: System, given: Problem, device: torch.device) -> float | str:
    """The most memory of one call above what was there before, in 10^6 bytes; empty on a CPU."""
    if device.type != "cuda":
        system.run(given)
        return ""
    _synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    system.run(given)
    _synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def verified(candidates: Sequence[System], given: Problem) -> tuple[list[System], dict[str, Errors], dict[str, str]]:
    """Which systems may be timed, the errors of those that ran, and why others may not.

    Raises:
        SystemExit: Ours is among the wrong ones.
    """
    limits = {kind: limits_of(kind, given, candidates) for kind in ("train", "score")}
    passed: list[System] = []
    errors: dict[str, Errors] = {}
    refused: dict[str, str] = {}
    for system in candidates:
        if system.missing:
            refused[system.name] = f"skipped: {system.missing}"
            continue
        if system.truth is None:
            passed.append(system)
            continue
        try:
            found = errors_of(system, given)
        except Exception as error:
            if system.ours:
                raise
            refused[system.name] = f"skipped: {first_line(error)}"
            continue
        limit = limits[system.kind]
        errors[system.name] = found
        if found.loss <= limit.loss and found.gradient <= limit.gradient:
            passed.append(system)
            continue
        wrong = (
            f"wrong: loss off by {found.loss:.3g} (limit {limit.loss:.3g}), "
            f"gradient by {found.gradient:.3g} (limit {limit.gradient:.3g})"
        )
        if system.ours:
            raise SystemExit(f"{system.name} is {wrong}: no speed is measured")
        refused[system.name] = wrong
    return passed, errors, refused


def measure(
    passed: Sequence[System], given: Problem, rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float | str], dict[str, str]]:
    """Milliseconds of each round, peak memory, and why a system dropped out; the systems take turns."""
    peaks: dict[str, float | str] = {}
    dropped: dict[str, str] = {}
    for system in passed:
        try:
            system.run(given)  # compiles, tunes
            peaks[system.name] = peak_mb(system, given, device)
        except Exception as error:
            if system.ours or system.truth is None:
                raise
            dropped[system.name] = f"skipped: {first_line(error)}"
        if system.name in dropped and device.type == "cuda":  # the error is gone, and with it what it held
            torch.cuda.empty_cache()
    left = [system for system in passed if system.name in peaks]
    times: dict[str, list[float]] = {system.name: [] for system in left}
    for _ in range(rounds):
        for system in left:
            times[system.name].append(timed(system, given, device))
    return times, peaks, dropped


def table(
    candidates: Sequence[System],
    given: Problem,
    errors: dict[str, Errors],
    notes: dict[str, str],
    times: dict[str, list[float]],
    peaks: dict[str, float | str],
) -> list[dict[str, Any]]:
    """The rows of one number of tokens."""
    tokens, hidden = given.hidden_MH.shape
    floors = {system.kind: statistics.median(times[system.name]) for system in candidates if system.truth is None}
    rows = []
    for system in candidates:
        row: dict[str, Any] = {
            "dtype": str(given.hidden_MH.dtype).removeprefix("torch."),
            "hidden": hidden,
            "vocabulary": len(given.weight_VH),
            "tokens": tokens,
            "kind": system.kind,
            "system": system.name,
            "note": "; ".join(filter(None, (notes.get(system.name, ""), system.note))),
        }
        if found := errors.get(system.name):
            row |= {"loss_error": found.loss, "gradient_error": found.gradient if system.kind == "train" else ""}
        if taken := times.get(system.name):
            median = statistics.median(taken)
            low, _, high = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else 3 * taken
            row |= {"ms": median, "ms_q1": low, "ms_q3": high, "tokens_per_s": 1e3 * tokens / median}
            row |= {"times_floor": median / floors[system.kind], "peak_mb": peaks[system.name]}
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of one number of tokens."""
    first = rows[0]
    print(f"\n{first['tokens']} tokens, hidden {first['hidden']}, vocabulary {first['vocabulary']}, {first['dtype']}")
    print(f"{'':46}{'ms':>9}{'tokens/s':>12}{'floor':>8}{'peak MB':>10}{'loss err.':>11}{'grad. err.':>11}")
    for row in rows:
        cells = "".join(
            f"{row[name]:>{width}{form}}" if isinstance(row.get(name), float) else " " * width
            for name, width, form in SHOWN
        )
        print(f"{row['system']:46}{cells}  {row['note']}".rstrip(), flush=True)


def write(path: Path, about_line: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows, floats to four significant digits, under the line that says how they came about."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(about_line)
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})


def about(arguments: Sequence[str], device: torch.device) -> str:
    """The first line of the result: command, versions, machine."""
    versions = []
    for name in ("torch", "triton", "trl", "liger-kernel"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    words = list(arguments)
    if "--results" in words:  # a place on this machine, which is nobody's business
        at = words.index("--results")
        del words[at : at + 2]
    command = " ".join(["python benchmarks/bench_kernel.py", *words])
    return f"# {command}; {', '.join(versions)}, {platform.platform()}, {os.cpu_count()} cores, {kind}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--hidden", type=int, help="2560 on cuda, 256 on cpu")
    parser.add_argument("--vocabulary", type=int, help="151936 on cuda, 8192 on cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help="2048 8192 32768 on cuda, 512 2048 on cpu")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="20 on cuda, 7 on cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave out what needs torch.compile")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder to write to")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    large = device.type == "cuda"
    dtype = getattr(torch, options.dtype or ("bfloat16" if large else "float32"))
    sizes = options.tokens or ([2048, 8192, 32_768] if large else [512, 2048])
    if wrong := [tokens for tokens in sizes if tokens % options.length]:
        parser.error(f"--tokens {wrong[0]} is no multiple of --length {options.length}")

    candidates = systems(dtype, device, compiling=not options.no_compile)
    path = options.results / f"kernel_{device.type}.csv"
    rows: list[dict[str, Any]] = []
    for tokens in sizes:
        given = make_problem(
            tokens,
            options.length,
            options.hidden or (2560 if large else 256),
            options.vocabulary or (151_936 if large else 8192),
            dtype,
            device,
        )
        passed, errors, refused = verified(candidates, given.first(min(tokens, 2 * options.length)))
        times, peaks, dropped = measure(passed, given, options.rounds or (20 if large else 7), device)
        found = table(candidates, given, errors, {**refused, **dropped}, times, peaks)
        rows += found
        show(found)
        write(path, about(sys.argv[1:] if arguments is None else arguments, device), rows)  # a machine may go any time
        del given
    print(f"\n{path}")


if __name__ == "__main__":
    main()
