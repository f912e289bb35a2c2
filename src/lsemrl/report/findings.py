"""What a report's numbers say: gain and loss, arms compared at the same score, the reward held against the oracle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from lsemrl.report.contrasts import Contrast, part_of
from lsemrl.report.records import KEPT, SCORES, Arm, Report

MISSING = "\N{EN DASH}"
_STRAYED = {"leak": "in the language it learned", "asked_back": "by a question"}
_OFTEN = 0.05
"""How much more often than the base an arm must answer so to be named for it."""
_FEW = 4
"""Right answers of the base below which other rows of its kind might well have shown none: e^-3 is .05."""
_NAMED = 4
"""Arms that a headline has room for."""
_NOTES = {
    "contained": "Contained: answers in which a gold answer stands whole, case and punctuation aside; a sentence "
    "around it costs nothing.",
    "accuracy": "Accuracy: the right choice has the highest log-probability of all; per token: the highest mean over "
    "its tokens. Guessed: what choosing blindly gives.",
    "chrf_sentence": "chrF of general ability is the mean over answers.",
    "leak": "Leak: answers in the language that was learned, although they were asked for in another.",
    "asked_back": "Asked back: answers that end as a question, where no accepted one does.",
}
"""What scores of general ability mean, where there are such."""


def number(value: float | None, digits: int = 1, sign: str = "") -> str:
    """`value` for people: a dash where it is missing, said so where it is not finite, zero without a sign."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:{sign}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("+-")


def path(arm: Arm, metric: str, kept: str = "em") -> list[tuple[float, float, float]]:
    """(step, `metric`, `kept`) through training, as fractions; the final evaluation stands for the last step.

    Points where either was not measured or is not finite are left out.
    """
    before = [point for point in arm.trajectory if point["step"] != arm.steps]
    rows = [(point["step"], point.get(metric, math.nan), point.get(kept, math.nan)) for point in before]
    rows.append((arm.steps, arm.target.get(metric, math.nan), arm.general.get(kept, math.nan)))
    return [row for row in rows if all(map(math.isfinite, row))]


@dataclass(frozen=True, kw_only=True)
class MatchedTax:
    """What two arms had lost when they scored the same.

    Attributes:
        score: The score compared at.
        loss_a: The base's main score of general ability minus the first arm's there, a fraction.
        loss_b: The second arm's.
        step_a: When the first arm got there.
        step_b: When the second did.
    """

    score: float
    loss_a: float
    loss_b: float
    step_a: float
    step_b: float


def tax_at_matched_score(
    a: Arm, b: Arm, *, base: Arm, metric: str = "meaning_f1", kept: str = "em"
) -> MatchedTax | None:
    """Compare the losses of `a` and `b` at the same target score: the lower of their two best.

    Step and `kept` are interpolated linearly where a trajectory first climbs to that score, since a practitioner
    stops there.

    Returns:
        None where an arm never comes above the base, where neither has lost anything yet, or never climbs to the score
        because it was always above it; and where nothing was measured.
    """
    paths = path(a, metric, kept), path(b, metric, kept)
    before = base.general.get(kept, math.nan)
    if not all(paths) or not math.isfinite(before):
        return None
    met = same_score(*paths)
    if met is None or met[0] <= base.target.get(metric, math.nan):
        return None
    score, (step_a, kept_a), (step_b, kept_b) = met
    return MatchedTax(score=score, loss_a=before - kept_a, loss_b=before - kept_b, step_a=step_a, step_b=step_b)


def same_score(
    one: list[tuple[float, float, float]], other: list[tuple[float, float, float]]
) -> tuple[float, tuple[float, float], tuple[float, float]] | None:
    """Where two paths of (step, score, what is kept) can be compared.

    Returns:
        The lower of their two best scores, and for each (step, what is kept) where it first climbs to that; None unless
        both do.
    """
    score = min(max(at for _, at, _ in each) for each in (one, other))
    first, second = _climb(one, score), _climb(other, score)
    return None if first is None or second is None else (score, first, second)


def _climb(rows: list[tuple[float, float, float]], score: float) -> tuple[float, float] | None:
    """(step, what is kept) where `rows` first reach `score` from below."""
    for (step, low, kept), (next_step, high, next_kept) in zip(rows, [*rows[1:], rows[-1]], strict=True):
        if low == score:
            return step, kept
        if low < score <= high:
            share = (score - low) / (high - low)
            return step + share * (next_step - step), kept + share * (next_kept - kept)
    return None


def _questions(arms: Iterable[Arm]) -> int:
    """How many each seed was asked."""
    return max((len(arm.nll_drifts) // max(1, len(arm.seeds)) for arm in arms), default=0)


def unmeasured(report: Report) -> str:
    """Why no loss says anything: the base has nothing to lose, or next to nothing; "" where it has.

    What guessing gives is nothing; so is what it gives by luck, up to two standard deviations.
    """
    share, guessed = report.base.general.get(report.kept, math.nan), report.base.general.get("chance", 0.0)
    rows = _questions(report.trained)
    few = 0.0 if report.kept == "chrf_sentence" else max(_FEW, 2 * math.sqrt(rows * guessed * (1 - guessed)))
    if share != 0 and not (rows and (share - guessed) * rows < few - 1e-6):
        return ""
    answered = "none" if share == 0 else f"only {number(share * rows, 0)} of {rows}"
    by_luck = f", where guessing gives {number(guessed * rows, 0)}" if guessed else ""
    return f"what was lost of {report.general_name} cannot be measured: the base answers {answered}{by_luck}"


def matched(report: Report) -> Iterator[tuple[Arm, Arm, MatchedTax | None]]:
    """RL beside each arm that it is an alternative to, where arms were followed through training."""
    if not report.kept or unmeasured(report) or not any(arm.trajectory for arm in report.arms):
        return
    for rl in report.trained:
        for other in report.trained:
            if rl.name.startswith("rl") and not other.name.startswith(("rl", "cold_start")):
                same = tax_at_matched_score(rl, other, base=report.base, metric=report.score, kept=report.kept)
                yield rl, other, same


def finding(report: Report) -> str:
    """What the run shows, in one sentence made of its numbers."""
    cold = {arm.name: arm for arm in report.trained if arm.name in ("cold_start", "cold_start_anchored")}
    # Where there are two, neither is where all began; means over other seeds are not held against each other.
    alike = len(report.trained) > 1 == len({arm.seeds for arm in report.trained})
    start = next(iter(cold.values())) if alike and len(cold) == 1 else report.base
    metric, kept, clauses, more, none = report.score, report.kept, list[str](), 0, unmeasured(report)
    for arm in report.trained:
        gain = 100 * (arm.target.get(metric, math.nan) - start.target.get(metric, math.nan))
        loss = 100 * (report.base.general.get(kept, math.nan) - arm.general.get(kept, math.nan))
        if arm is start or not math.isfinite(gain) or (kept and kept not in arm.general):
            continue
        if len(clauses) == _NAMED:
            more += 1
            continue
        gained = f"{'fell by' if round(gain, 1) < 0 else 'gained'} {abs(gain):.1f}"
        above = 100 * (arm.target[metric] - report.base.target.get(metric, math.nan))
        # A gain over a cold start that fell is none over the base.
        below = f" ({abs(above):.1f} below the base)" if start is not report.base and round(above, 1) < 0 else ""
        drift = arm.general.get("nll", math.nan) - report.base.general.get("nll", math.nan)
        if none:  # where no answer can be counted, gold answers that became less likely still tell of a loss
            lost = f" at {number(drift, 2, '+')} nats" if round(drift, 2) > 0 else ""
        else:
            lost = f" and {'gained' if round(loss, 1) < 0 else 'lost'} {number(abs(loss))}" if kept else ""
        if clauses:
            clauses.append(f"{arm.label} {gained}{below}{lost}")
        else:
            over = f"{'over' if 'gained' in gained else 'from'} the {'base' if start is report.base else 'cold start'}"
            of = f"points of {SCORES[metric]} {over}"
            of_what = "a token of the gold answers to" if none else "points of"
            against = lost and f"{lost} {of_what} {report.general_name} against the base"
            clauses.append(f"{arm.label} {gained} {of}{below}{against}")
    if more:
        clauses.append(f"{more} more arm{'s' * (more > 1)} below")
    if clauses and none:
        clauses.append(none)
    if not report.trained:
        return "Only the base was measured"
    score = SCORES[metric] if any(metric in arm.target for arm in report.arms) else "score that tells a gain"
    both = f"both a {score} and a score of {report.general_name}" if kept else f"a {score}"
    return "; ".join(clauses) or f"No arm has {both} to compare"


def comparisons(report: Report) -> list[str]:
    """RL against the cold start and each alternative, a sentence each; at the same score where that is known."""
    lines = [*_contrasted(report), *_unpaired(report), *_same(report), *_strayed(report)]
    name = SCORES[report.score]
    for rl, other, same in matched(report):
        if same is None:
            lines.append(
                f"{rl.label} and {other.label} cannot be compared at the same {name}: one never came above the base, "
                "or was always above the other, or they were not both measured."
            )
            continue
        losses = [number(100 * loss) for loss in (same.loss_a, same.loss_b)]
        lines.append(
            f"At the same {name} of {100 * same.score:.1f}, {rl.label} has lost {losses[0]} points of "
            f"{report.general_name} and {other.label} {losses[1]} (at steps {same.step_a:.0f} and {same.step_b:.0f})."
        )
    return lines


def _same(report: Report) -> Iterator[str]:
    """What two ways of training had lost at the same score."""
    labels = {arm.name: arm.label for arm in report.arms}
    for each in [] if unmeasured(report) else report.same_scores[:_NAMED]:
        of, other, name = labels[each.of], f"the way to {labels[each.against]}", SCORES[report.score]
        why = [
            f"in seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {way} never came above the base"
            for way, seeds in ((of, each.below), (other, each.below_against))
            if seeds
        ]
        if not each.scores:
            none = "; ".join(why) or "there is no seed of which both are known"
            yield f"{of} and {other} cannot be compared at the same {name}: {none}."
            continue
        score, lost, against = map(fmean, (each.scores, each.losses, each.losses_against))
        if not math.isfinite(lost + against):
            yield f"{of} and {other} cannot be compared at the same {name}: a loss is not finite."
            continue
        low, high = (number(100 * bound, 1, "+") for bound in (each.low, each.high))
        bounds = f" [{low}, {high}]" if math.isfinite(each.low) else ""
        part = f" ({seeds})" if (seeds := part_of(each)) else ""
        yield (
            f"At the same {name} of {100 * score:.1f}{part}, {of} has lost {number(100 * lost)} points of "
            f"{report.general_name} and {other} {number(100 * against)}: {number(100 * (against - lost), 1, '+')}"
            f"{'; '.join((bounds, *why))}."
        )


def _strayed(report: Report) -> Iterator[str]:
    """Which arms do to questions what they learned to do to texts, instead of answering them."""
    for arm, (score, how) in product(report.trained, _STRAYED.items()):
        share, before = (each.general.get(score, math.nan) for each in (arm, report.base))
        if share - before >= _OFTEN:
            asked = f"{100 * share:.0f}% of the questions of {report.general_name}"
            yield f"{arm.label} answers {asked} {how} (the base {100 * before:.0f}%)."


def _contrasted(report: Report) -> list[str]:
    """What the intervals say of each arm against the last that it is held against: RL against the cold start."""
    lines, arms = list[str](), {arm.name: arm for arm in report.arms}
    pairs = {each.of: each.against for each in report.contrasts if each.against != "base"}
    for of, against in list(pairs.items())[:_NAMED]:
        gain = report.contrast(of, against, f"target.{report.score}")
        loss = report.contrast(of, against, f"tax.{report.kept}")
        if gain and math.isfinite(gain.value) and (not report.kept or (loss and math.isfinite(loss.value))):
            better = _moved(gain, "higher", "lower")
            worse = _moved(loss, "more", "less") if loss and not unmeasured(report) else ""
            lost = worse and f"; of {report.general_name} it lost {worse}"
            name = SCORES[report.score]
            part = f" ({seeds})" if (seeds := part_of(gain)) else ""
            lines.append(f"{arms[of].label} against {arms[against].label}{part}: {name} is {better}{lost}.")
    return lines


def _unpaired(report: Report) -> Iterator[str]:
    """Which arms were to be held against each other and cannot be."""
    labels = {arm.name: arm.label for arm in report.arms}
    for of, against in report.unpaired[:_NAMED]:
        yield f"{labels[of]} and {labels[against]} share no seed, so that they are not held against each other."


def _moved(contrast: Contrast, up: str, down: str) -> str:
    """The size of `contrast` in points, its direction and interval; whether it may be chance."""
    if not all(map(math.isfinite, (contrast.value, contrast.low, contrast.high))):
        return f"{number(100 * contrast.value, 1, '+')} points, of which nobody can tell whether it is chance"
    low, high = sorted((abs(contrast.low), abs(contrast.high)))
    if contrast.low <= 0 <= contrast.high:
        shown = f"[{number(100 * contrast.low, 1, '+')}, {number(100 * contrast.high, 1, '+')}]"
        return f"{number(100 * contrast.value, 1, '+')} points {shown}, which may be chance"
    direction = up if contrast.value > 0 else down
    return f"{100 * abs(contrast.value):.1f} points {direction} [{100 * low:.1f}, {100 * high:.1f}]"


def hacking(arm: Arm) -> str:
    """How reward and oracle moved between the first and the last tenth of an arm's rollouts; "" without both."""
    pairs = [(point.get("similarity", math.nan), point.get("meaning_f1", math.nan)) for point in arm.curve]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if not pairs:
        return ""
    tenth = -(-len(pairs) // 10)
    reward, oracle = (sum(values) / tenth for values in zip(*pairs[:tenth], strict=True))
    reward_end, oracle_end = (sum(values) / tenth for values in zip(*pairs[-tenth:], strict=True))
    change = number(reward_end - oracle_end - reward + oracle, 2, "+")
    return (
        f"From the first tenth of the run to the last, the similarity reward went from {number(reward, 2)} to "
        f"{number(reward_end, 2)} and the oracle's meaning F1 from {number(oracle, 2)} to {number(oracle_end, 2)}: "
        f"the gap moved by {change}."
    )


def notes(report: Report) -> list[str]:
    """What a reader must know to take the tables for what they are."""
    lines = [
        "Bold is the best of the trained arms where they differ; with a sign, the difference from the base. Scores are "
        "in points of 100 except cosines (similarity, its reward, the hacking gap), COMET, MetricX, of which less is "
        "better, and the harness's own; NLL and KL in nats per token; length in characters. Wholly "
        "right: every slot and nothing else; language: outputs in the right one; copied: outputs that are "
        "mostly copies of the source; ended: outputs that stopped by themselves.",
        f"{MISSING} means not measured; not finite, that the measurement gave NaN or infinity.",
    ]
    if report.contrasts:
        lines += [
            "± is the standard deviation over seeds. Brackets hold the 95% interval of the difference from the base, "
            "by paired bootstrap over rows and Student's t over seeds: wide with three seeds, and with a single one "
            "silent about others. BLEU, chrF and TER of the corpus are scored again on the rows of every draw.",
            "KL is KL(arm \N{DOUBLE VERTICAL LINE} base), reverse KL(base \N{DOUBLE VERTICAL LINE} arm); own outputs "
            "are what the arm itself draws on the new task. Similarity reward is the cosine as the reward counts it; "
            "the hacking gap is that minus the oracle's meaning F1.",
        ]
    for arm, judged in ((arm, arm.judged) for arm in report.trained if arm.judged):
        lines.append(
            f"Judge win of {arm.label}: {', '.join(filter(None, (f'{judged.rows:,} rows', part_of(judged))))}."
        )
    if report.paths:
        lines.append("A way of training is its arms in order of strength, joined from the base on.")
        if report.same_scores and not unmeasured(report):
            lines[-1] += (
                " Two ways are compared, seed by seed, at the lower of their two best scores, where each first climbs "
                "to it on a straight line between its arms. The interval is Student's t over seeds; there is none "
                "where a way never comes above the base in one of them, which is left out."
            )
    if not report.kept:
        lines.append("General ability was not measured, so that nothing can be said of what was lost.")
    lines += [note for score, note in _NOTES.items() if any(score in arm.general for arm in report.arms)]
    questions = _questions(report.arms)
    share = report.base.general.get(report.kept, math.nan)
    if questions and math.isfinite(share) and not report.contrasts and report.kept != "chrf_sentence":
        margin = 196 * math.sqrt(share * (1 - share) / questions)
        lines.append(
            f"{report.general_name} has {questions} questions: an {KEPT[report.kept]} near the base's is known to "
            f"±{margin:.1f} points (95%, binomial); arms closer than that may differ by chance."
        )
    return lines
