"""Faults put into the code on purpose, one at a time: does a test fail?

Signs, constants and comparisons of losses, advantages, packing, sampler, kernels, rewards, metrics, splits and tax. A
mutant is a line of a copy of src/ that is read in its place; only the tests named for its room are run. One that no
test fails for has survived: it wants a test, or stands in `EQUIVALENT` with the reason why no test could tell.

    python benchmarks/mutants.py [--only losses.py] [--results benchmarks/results [--again]]
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A piece of text that is found once in one file of that name, and what stands in its place."""

    file: str
    was: str
    becomes: str
    tests: tuple[str, ...]


def _room(file: str, tests: tuple[str, ...], *changes: tuple[str, str]) -> Iterator[Mutant]:
    return (Mutant(file, was, becomes, tests) for was, becomes in changes)


MUTANTS = (
    *_room(
        "losses.py",
        ("test_losses.py", "test_losses_against_trl.py"),
        ("1 - settings.epsilon, settings.upper_bound)", "1 + settings.epsilon, settings.upper_bound)"),
        ("loss_NT = -torch.min(", "loss_NT = -torch.max("),
        ("loss_NT = -torch.min(", "loss_NT = torch.min("),
        ("clamp(max=settings.delta)", "clamp(min=settings.delta)"),
        ("1 - settings.epsilon) & (advantages_N1 < 0)", "1 - settings.epsilon) & (advantages_N1 > 0)"),
        ("settings.upper_bound) & (advantages_N1 > 0)", "settings.upper_bound) & (advantages_N1 >= 0)"),
        ("(low_NT | high_NT)", "(low_NT & high_NT)"),
        ("loss_NT + settings.beta * kl_NT", "loss_NT - settings.beta * kl_NT"),
        ("d_NT = ref_logprobs_NT - logprobs_NT", "d_NT = logprobs_NT - ref_logprobs_NT"),
        ("return d_NT**2 / 2", "return d_NT**2"),
        ("return d_NT.exp() - d_NT - 1", "return d_NT.exp() - d_NT"),
        ("return -d_NT\n", "return d_NT\n"),
        ("_LOG_LIMIT = 20.0", "_LOG_LIMIT = 100.0"),
        ("self.epsilon if self.epsilon_high is None else self.epsilon_high", "self.epsilon"),
        ("(-(logprobs_C * weights_M[tokens]).sum(), {})", "((logprobs_C * weights_M[tokens]).sum(), {})"),
        ("bisect_left(starts, tokens.start) :", "bisect_left(starts, tokens.start) + 1 :"),
    ),
    *_room(
        "advantages.py",
        ("test_advantages.py", "test_losses_against_trl.py"),
        ("_EPS = 1e-4", "_EPS = 1e-6"),
        ("(sum_B1 - rewards_BG) / (count_B1 - 1)", "(sum_B1 - rewards_BG) / count_B1"),
        ("advantages_BG = rewards_BG - baseline_BG", "advantages_BG = baseline_BG - rewards_BG"),
        ("spread_B1 <= settings.resolution", "spread_B1 < settings.resolution"),
        ("(count_B1 - 1).clamp(min=1)).sqrt()", "count_B1.clamp(min=1)).sqrt()"),
        ("rewards_BG.reshape(1, -1)", "rewards_BG"),
        ("rewards_BG.dtype, rewards_BG.double()", "rewards_BG.dtype, rewards_BG"),
        ("(spread_B1 == 0) &", "(spread_B1 <= 1e-3) &"),
        ("(spread_B1 == 0) & (count_B1 > 1)", "(spread_B1 == 0)"),
        ("if num_generations < 2:", "if num_generations < 1:"),
        ("tied_B1 | ~scored_BG, 0.0)", "tied_B1, 0.0)"),
    ),
    *_room(
        "packing.py",
        ("test_packing.py", "test_forward.py"),
        ("causal_LL & (", "causal_LL | ("),
        ("(keys == PROMPT) | (keys == queries)", "keys == queries"),
        ("prompts_B[row_M] + token_M)[fed_M]", "prompts_B[row_M] + token_M + 1)[fed_M]"),
        ("fed_M = token_M + 1 < lengths_N", "fed_M = token_M < lengths_N"),
        (
            "torch.where(token_M == 0, prompts_B[row_M], place_M) - 1",
            "torch.where(token_M == 0, prompts_B[row_M], place_M)",
        ),
        ("size + lengths[row] - 1 > max_tokens", "size + lengths[row] - 1 > 2 * max_tokens"),
        ("MAX_PADDING = 0.1", "MAX_PADDING = 0.5"),
        ("slots > max_tokens or", "slots >= 2 * max_tokens or"),
        ("cumsum(dim=1) > prefix", "cumsum(dim=1) >= prefix"),
        ("tokens > max_tokens or own", "tokens > 2 * max_tokens or own"),
        ("LESS = 0.9", "LESS = 1.0"),
        ("_ROW = 4096", "_ROW = 40960"),
        ("_SPREAD = 2", "_SPREAD = 20"),
        (".long().cumprod(dim=0).sum()", ".long().sum()"),
    ),
    *_room(
        "apart.py",
        ("test_apart.py",),
        ("(at_P < behind_N1)", "(at_P <= behind_N1)"),
        ("(at_T[:, None] >= at_T)", "(at_T[:, None] > at_T)"),
        ("(at_T[:, None] - at_T < window)", "(at_T[:, None] - at_T <= window)"),
        ("(behind_N1 + at_T)[:, :, None] - at_P < window", "(behind_N1 + at_T)[:, :, None] - at_P <= window"),
        ("at_P[:, None] - at_P < window", "at_P[:, None] - at_P <= window"),
        ("if at:  # keys", "if at > 1:  # keys"),
        ("index_fill(0, own.places_M, 0)", "index_fill(0, own.places_M[:0], 0)"),
        ("for grad_NHKD, own in zip(of_owns, found.owns, strict=True):", "for grad_NHKD, own in ():"),
        (' or settings.get("dropout"):', ":"),
    ),
    *_room(
        "decoding.py",
        ("test_sampler.py",),
        ("place_BP >= prefix", "place_BP > prefix"),
        ("int(mask_BP.sum(dim=1).min()) - 1)", "int(mask_BP.sum(dim=1).min()))"),
        (" or window(policy.model) is not None", ""),
        ("count == 1 or policy.sharded or", "count == 1 or"),
    ),
    *_room(
        "beams.py",
        ("test_sampler.py",),
        ("both_BC.argsort(dim=1, descending=True", "both_BC.argsort(dim=1, descending=False"),
        ("torch.full_like(best_BK, step + 1)", "torch.full_like(best_BK, step)"),
    ),
    *_room(
        "guards.py",
        ("test_guards.py",),
        ("references=())", "references=example.references)"),
        ("next(filter(sound, some), some[0])", "next(filter(sound, some), some[-1])"),
    ),
    *_room(
        "products.py",
        ("test_products.py",),
        ("if rows < 2 or", "if rows < 3 or"),
        ("or recorded or", "or"),
        ("numel() >= _LEAST_WEIGHTS", "numel() >= 0"),
        ("return multiply(x, weight_NK, bias_N)", "return multiply(x, weight_NK, None)"),
        ('        and not torch.is_autocast_enabled("cpu")\n', ""),
    ),
    *_room(
        "summing.py",
        ("test_summing.py",),
        ("first_RI.t()).mul_(scaling)", "first_RI.t())"),
        ("second_OR).mul_(ctx.scaling)", "second_OR)"),
        ("if ctx.one_input", "if True"),
        ("grad_x_MI.addmm_(grad_inner_MR, first_RI)", "pass"),
        (" or any(weight.requires_grad for weight in base.parameters())", ""),
    ),
    *_room(
        "sampler.py",
        ("test_sampler.py",),
        ("logits_NV = logits_NV / sampling.temperature", "logits_NV = logits_NV * sampling.temperature"),
        ("- probabilities_NK >= top_p", ">= top_p"),
        ("(probabilities_NK.sum(dim=-1) >= sampling.top_p).all()", "(probabilities_NK.sum(dim=-1) >= 0).all()"),
        ("if sampling.temperature == 0:", "if sampling.temperature < 0:"),
        ("0 < sampling.top_k < vocabulary", "1 < sampling.top_k < vocabulary"),
        ("ended_N[rows] |= torch.isin(token_N, eos)", "ended_N[rows] |= token_N == eos[0]"),
        ("check_finite(not wrong)", "check_finite(True)"),
        ("manual_seed(seed)", "manual_seed(0)"),
    ),
    *_room(
        "optimization.py",
        ("test_optimization.py",),
        ("return (step + 1) / warmup", "return step / warmup"),
        ("0.5 * (1 + math.cos", "0.5 * (1 - math.cos"),
        ("if bool(norm.isfinite()):", "if True:"),
        (
            "schedule.last_epoch, schedule._step_count = taken, taken + 1",
            "schedule.last_epoch, schedule._step_count = 0, 1",
        ),
    ),
    *_room(
        "torch_kernels.py",
        ("test_token_logprobs.py", "test_fused_policy_loss.py"),
        ("LOWEST = -200.0", "LOWEST = -2.0"),
        (".mul_(inverse_temperature)", ".div_(inverse_temperature)"),
        ("scatter_(1, targets_C1, 0.0)", "scatter_(1, targets_C1, 1.0)"),
        ("(1, targets_C[:, None], at_target_C1)", "(1, targets_C[:, None], -at_target_C1)"),
    ),
    *_room(
        "fused_policy_loss.py", ("test_fused_policy_loss.py",), ("(gradient * grad).to(dtype)", "gradient.to(dtype)")
    ),
    *_room(
        "semantic.py",
        ("test_semantic.py", "test_measure.py"),
        ("max(0.0, cosine - threshold) / (1 - threshold)", "max(0.0, cosine - threshold) / (1 + threshold)"),
        ("max(0.0, cosine - threshold) / (1 - threshold)", "max(-1.0, cosine - threshold) / (1 - threshold)"),
        ("bool(text.strip()) and _BROKEN not in text", "bool(text.strip())"),
        (".sum(dim=1).max()", ".sum(dim=1).min()"),
    ),
    *_room(
        "base.py",
        ("test_base.py",),
        ("part.weight * parts_N[name] for", "(abs(part.weight) + 1) * parts_N[name] for"),
        ("(scores_N >= self.opens_from)", "(scores_N <= self.opens_from)"),
        ("stacked_KN.isnan().all(dim=0)", "stacked_KN.isnan().any(dim=0)"),
        ("stacked_KN.isinf().any() or", "False or"),
    ),
    *_room(
        "corpus.py",
        ("test_corpus.py", "test_canonical.py"),
        (
            "value = metric._aggregate_and_compute(counts).score / 100",
            "value = metric._aggregate_and_compute(counts).score",
        ),
        ('accumulate="best"', 'accumulate="avg"'),
        ("if 2 * len(whole) > len(texts):", "if len(whole) == len(texts):"),
        ("return list(map(canonical, outputs)),", "return list(outputs),"),
    ),
    *_room(
        "splits.py",
        ("test_splits.py",),
        ("point < test_fraction else validation", "point <= 1 else validation"),
        ("if len(taken) >= count:", "if len(taken) > count:"),
        ('cold_start if splits.part == "cold_start" else rl', 'rl if splits.part == "cold_start" else cold_start'),
        ("if not any(content_key(text) in seen", "if not all(content_key(text) in seen"),
    ),
    *_room(
        "tax.py",
        ("test_tax.py",),
        ("(now_CV.exp() * apart_CV)", "(then_CV.exp() * apart_CV)"),
        ("-(then_CV.exp() * apart_CV)", "(then_CV.exp() * apart_CV)"),
        ("[own / count for own, count", "[own for own, count"),
        ("return math.sqrt(change / size)", "return change / size"),
    ),
    *_room(
        "rows.py",
        ("test_tax_report.py",),
        (
            '(rows["tax.nll"] - base["tax.nll"]).tolist()',
            'abs(rows["tax.nll"] - base["tax.nll"]).tolist()',
        ),
    ),
    *_room(
        "columns.py",
        ("test_records.py",),
        ("values = np.array(getattr(arm, field))", "values = abs(np.array(getattr(arm, field)))"),
    ),
    *_room("sharding.py", ("test_reference.py",), ("target.lerp_(source, share)", "target.lerp_(source, 1 - share)")),
    *_room(
        "random_state.py",
        ("test_ranks.py::test_every_rank_and_every_step_draws_of_a_seed_of_its_own",),
        ("step * 1009 + rank)", "step * 1009)"),
    ),
    *_room(
        "scoring.py",
        ("test_untouched.py",),
        ("with policy.inference():", "with torch.no_grad():"),
    ),
    *_room(
        "grpo.py",
        ("test_untouched.py",),
        ("self.policy.model.train(self.dropout_in_updates)", "self.policy.model.train()"),
    ),
)

EQUIVALENT: dict[tuple[str, str], str] = {}
"""By file and what it becomes: why no test could tell."""


def found(mutant: Mutant) -> Path:
    """The one file that holds its text, below the root."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob(mutant.file)}
    places = [path for path, text in texts.items() if mutant.was in text]
    assert len(places) == 1 and texts[places[0]].count(mutant.was) == 1, f"{mutant} is in {places}"
    return places[0].relative_to(ROOT)


def files_of(mutant: Mutant) -> list[str]:
    """The paths of its tests."""
    paths = []
    for name in mutant.tests:
        file, colons, test = name.partition("::")
        paths += [f"{path}{colons}{test}" for path in (ROOT / "tests").rglob(file)]
    assert paths, f"{mutant.tests} are no tests"
    return paths


def survives(tests: list[str], change: Mutant | None) -> bool:
    """Whether `tests` pass where `change` has been made; in a process of its own, where libraries are read already."""
    process = os.fork()
    if process:
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status in (0, 1), f"the tests of {change} did not run"
        return status == 0
    status = 9
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = shutil.copytree(ROOT / "src", Path(folder) / "src")
            os.symlink(ROOT / "configs", Path(folder) / "configs")
            if change is not None:
                path = Path(folder) / found(change)
                path.write_text(path.read_text(encoding="utf-8").replace(change.was, change.becomes), encoding="utf-8")
            os.environ["PYTHONPATH"] = str(source)
            sys.path.insert(0, str(source))
            os.chdir(ROOT)
            with open(os.devnull, "w") as nothing:
                for stream in (1, 2):
                    os.dup2(nothing.fileno(), stream)
            import pytest

            # Anything but passing is a mutant's death, be it that its tests cannot even be collected.
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]) != 0)
    finally:
        os._exit(status)


def killed_before(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The rows of an earlier result whose mutants were killed."""
    with path.open(newline="", encoding="utf-8") as file:
        next(file)  # how it came about
        return {(row["was"], row["becomes"]): row for row in csv.DictReader(file) if row["result"] == "killed"}


def main() -> int:
    """1 if a mutant survived that is not known to be equivalent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="mutants of files of this name")
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("--again", action="store_true", help="those that the results say survived; the others stand")
    options = parser.parse_args()
    if options.again and not options.results:
        parser.error("--again reads the results of an earlier run: name their folder by --results")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for library in ("lightning.pytorch", "peft", "sentence_transformers", "trl", "pytest"):
        importlib.import_module(library)  # before the forks

    rows: list[dict[str, Any]] = []
    sound, dead = set[tuple[str, ...]](), killed_before(options.results / "mutants.csv") if options.again else {}
    for mutant in MUTANTS:
        if options.only not in (None, mutant.file):
            continue
        if (mutant.was, mutant.becomes) in dead:
            rows.append(dead[mutant.was, mutant.becomes])
            continue
        tests = files_of(mutant)
        if mutant.tests not in sound:
            assert survives(tests, None), f"{mutant.tests} fail as it is"
            sound.add(mutant.tests)
        begun = time.monotonic()
        alive = survives(tests, mutant)
        result = EQUIVALENT.get((mutant.file, mutant.becomes), "survived") if alive else "killed"
        row = {"file": str(found(mutant)), "was": mutant.was, "becomes": mutant.becomes, "result": result}
        rows.append({**row, "seconds": round(time.monotonic() - begun, 1)})
        print(f"{result:<9} {mutant.file}: {mutant.was!r} -> {mutant.becomes!r}", flush=True)
    left = [row for row in rows if row["result"] == "survived"]
    print(f"\n{len(rows)} mutants, {len(left)} survived")
    if options.results:
        from harness import about, write_csv

        write_csv(options.results / "mutants.csv", about(("lsemrl", "torch", "transformers", "peft", "trl")), rows)
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
