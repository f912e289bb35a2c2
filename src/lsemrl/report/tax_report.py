"""From measurements of arms and seeds to a report: means, spreads, and differences with their intervals.

A verb of its own beside `lsemrl report`: that one renders a finished report again, this one makes it, from arms that
may have been trained anywhere as long as they were measured on the same rows.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from lsemrl import __version__
from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import BASE, Measured, Rows
from lsemrl.metrics.corpus import pooled
from lsemrl.report.bootstrap import Interval, half_width, paired_bootstrap, pooled_bootstrap
from lsemrl.report.findings import same_score
from lsemrl.report.folders import Found, General
from lsemrl.report.harness import by_arm, harness
from lsemrl.report.records import GENERAL, KEPT, SCORES, TARGET, Arm, Contrast, Report, SameScore, Sample
from lsemrl.report.rows import Array, alarms_of, counts_of, drifts_of, kl_rows_of, mean_rows_of, rows_of, values_of

_FIRST = (BASE, "cold_start", "cold_start_anchored", "rl", "rl_anchored", "sft", "sft_anchored", "sft_replay")
_SAMPLES = 8
_NONE = Rows(count=0, sha256="")
AGAINST = ("cold_start", "rl")
_CLAIMED = (*(f"target.{name}" for name in SCORES), "target.similarity", *(f"tax.{name}" for name in KEPT), "tax.nll")
"""What they are compared in: seeds that both have are paired."""


def tax_report(
    found: Sequence[Found],
    command: str,
    against: Sequence[str] = AGAINST,
    judged: Mapping[str, float] | None = None,
    paths: Sequence[Sequence[str]] = (),
    general: Sequence[General] = (),
) -> Report:
    """Set measured arms side by side.

    Args:
        found: Measurements and where they are from; one arm is the base.
        command: What was typed.
        against: Arms, beside the base, that the others are held against, where they are there.
        judged: See `find_judgement`.
        paths: Each the arms that are one way of training at rising strength; what the first had lost is compared with
            what each of the others had when they scored the same.
        general: Scores of lm-evaluation-harness, each of an adapter that was measured too.

    Raises:
        UserError: There is no base, a path names an arm that was not measured, a general.json is of another adapter, or
            the measurements cannot be compared with each other.
    """
    _check(found)
    groups: dict[str, list[Measured]] = {}
    for _, measured in sorted(found, key=lambda pair: pair[1].seed):
        groups.setdefault(measured.arm, []).append(measured)
    order = [*(name for name in _FIRST if name in groups), *(name for name in groups if name not in _FIRST)]
    base = groups[BASE][0]
    for name in (name for arms in paths for name in arms):
        if name not in groups or name == BASE:
            raise UserError(f"--path names {name!r}; choose among the trained arms: {', '.join(order[1:])}")
    asked = by_arm(general, found)
    report = Report(
        lsemrl=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task=_task(base),
        seed=None,
        command=command,
        machine=base.machine,
        versions=base.versions,
        signatures=base.signatures,
        seconds=sum(measured.seconds for _, measured in found),
        arms=tuple(_arm(groups[name], groups[BASE], (judged or {}).get(name), asked.get(name, ())) for name in order),
        contrasts=tuple(_contrasts({name: groups[name] for name in order}, against)),
        paper=_paper(base),
        setup=_setup(base),
        paths=tuple(map(tuple, paths)),
        general_name=base.general_name,
        text_name=base.text_name,
    )
    if paths and not report.kept:
        raise UserError(
            "--path compares what ways of training lost, and no general ability was measured; set general and measure "
            "again, or leave --path out"
        )
    if paths and report.score not in report.base.target:
        raise UserError(
            "--path compares ways of training where they scored the same, and the measurements have no score to "
            "compare by; measure again with chrf in metrics.names, or leave --path out"
        )
    same = _same_scores(groups, report.paths, f"target.{report.score}", f"general.{report.kept}")
    return dataclasses.replace(report, same_scores=tuple(same))


def _same_scores(
    groups: Mapping[str, Sequence[Measured]], paths: Sequence[tuple[str, ...]], metric: str, kept: str
) -> Iterator[SameScore]:
    """The first path beside each of the others, wherever both can be compared on some seed."""
    if not paths:
        return
    base = mean_rows_of(groups[BASE])
    before = float(base[kept].mean())
    start = fmean(values_of(each, base)[metric] for each in groups[BASE])
    by_seed = {name: {each.seed: values_of(each, base) for each in seeds} for name, seeds in groups.items()}

    def points(path: tuple[str, ...], seed: int) -> list[tuple[float, float, float]]:
        """(place on the path, score, what is kept)"""
        measured = [(start, before)]
        measured += [(values[metric], values[kept]) for values in (by_seed[arm][seed] for arm in path)]
        return [(at, *each) for at, each in enumerate(measured)]

    for path in paths[1:]:
        found: list[tuple[float, float, float]] = []
        for seed in sorted(set.intersection(*(set(by_seed[arm]) for arm in (*paths[0], *path)))):
            met = same_score(points(paths[0], seed), points(path, seed))
            if met is not None and met[0] > start:  # else both are met at the base, where neither has lost anything
                score, (_, own), (_, others) = met
                found.append((score, before - own, before - others))
        if found:
            scores, losses, against = zip(*found, strict=True)
            more = np.subtract(against, losses)
            half = half_width(more)
            yield SameScore(
                of=paths[0][-1],
                against=path[-1],
                scores=scores,
                losses=losses,
                losses_against=against,
                low=float(more.mean() - half),
                high=float(more.mean() + half),
            )


def _check(found: Sequence[Found]) -> None:
    """Refuse measurements that say nothing about each other."""
    base = next((pair for pair in found if pair[1].arm == BASE), None)
    if base is None:
        arms = ", ".join(dict.fromkeys(measured.arm for _, measured in found))
        raise UserError(f"no measurement is of the base, only of {arms}: measure the original model too (--arm {BASE})")
    by_arm: dict[tuple[str, int], Path] = {}
    for path, measured in found:
        other = by_arm.setdefault((measured.arm, measured.seed), path)
        if other != path:
            raise UserError(
                f"{path} and {other} are both arm {measured.arm!r}, seed {measured.seed}: give each its own seed or arm"
            )
        if fault := _fault(measured, base[1]):
            raise UserError(f"{path} cannot be compared with {base[0]}: {fault}")


def _fault(measured: Measured, base: Measured) -> str:
    """Why `measured` says nothing beside `base`, and what to do; "" if it does."""
    if measured.task != base.task:
        return f"its task is {measured.task!r}, not {base.task!r}; report each task apart"
    for part in (*base.data, *measured.data):
        now, then = (each.data.get(part, _NONE) for each in (measured, base))
        if now != then:
            count = f"{now.count}, not {then.count}" if now.count != then.count else f"{then.count} too"
            return f"it was measured on other {part} rows ({count}); measure every arm with one configuration"
    if measured.base_fingerprint != base.base_fingerprint:
        return (
            f"it is held against another base model ({measured.base}, not {base.base}); measure every arm against one"
        )
    for field in ("conditions", "signatures"):
        its, others = getattr(measured, field), getattr(base, field)
        for key in (*others, *its):
            if its.get(key) != others.get(key):
                return (
                    f"its {key} is {its.get(key, 'absent')!r}, not {others.get(key, 'absent')!r}; measure every arm "
                    "with one configuration and one version"
                )
    return ""


def _paper(base: Measured) -> str:
    """Which of the paper's tasks it is; "" for none."""
    return "translation" if "-" in base.task else "headline" if base.task == "headline" else ""


def _task(base: Measured) -> str:
    """The task for people."""
    return f"translation {base.task.replace('-', '→')}" if _paper(base) == "translation" else f"{base.task}s"


def _setup(base: Measured) -> dict[str, str]:
    rows = ", ".join(f"{rows.count} {part} ({rows.sha256[:8]})" for part, rows in base.data.items())
    conditions = ", ".join(f"{key} {value}" for key, value in base.conditions.items())
    return {"base model": f"{base.base} ({base.base_fingerprint})", "rows": rows, "conditions": conditions}


def _arm(
    seeds: Sequence[Measured], bases: Sequence[Measured], judge_win: float | None, asked: Sequence[General]
) -> Arm:
    first, trained = seeds[0], seeds[0].arm != BASE
    base = mean_rows_of(bases)
    each = [values_of(measured, base) for measured in seeds]
    by_seed = {
        metric: tuple(values[metric] for values in each)
        for metric in each[0]
        if all(metric in values for values in each)
    }

    def means(field: str, keys: Sequence[str]) -> dict[str, float]:
        return {key: fmean(by_seed[f"{field}.{key}"]) for key in keys if f"{field}.{key}" in by_seed}

    lines = tuple(first.divergence)
    return Arm(
        name=first.arm,
        label=first.label,
        trained_by=first.trained_by,
        seconds=0.0,
        steps=0,
        target=means("target", TARGET),
        general=means("general", GENERAL),
        nll_drifts=tuple(drift for measured in seeds if trained for drift in drifts_of(measured, base)),
        kl=means("kl", lines),
        kl_from_base=means("kl_from_base", lines),
        kl_rows=tuple(kl for measured in seeds if trained for kl in kl_rows_of(measured)),
        weight_change=fmean(by_seed["weight_change"]) if trained else None,
        harness=harness(asked),
        judge_win=judge_win,
        adapters=tuple(measured.adapter_fingerprint for measured in seeds if measured.adapter_fingerprint),
        seeds=tuple(measured.seed for measured in seeds) if trained else (),
        by_seed=by_seed if trained else {},
        samples=tuple(_samples(first)),
        alarms=tuple(
            alarm
            for measured in seeds
            for alarm in alarms_of(measured.alarms, measured.seed if len(seeds) > 1 else None)
        ),
    )


def _samples(measured: Measured) -> Iterator[Sample]:
    names = [name for name in ("similarity", "meaning_f1", "language_rate") if name in measured.target_rows]
    for at, output in enumerate(measured.outputs[:_SAMPLES]):
        yield Sample(
            source=output.source,
            reference=output.references[0],
            output=output.output,
            rewards={name: measured.target_rows[name][at] for name in names},
        )


def _contrasts(groups: dict[str, list[Measured]], against: Sequence[str]) -> Iterator[Contrast]:
    """Every arm against the base in every metric, and against some of the others in what is claimed of them."""
    rows = {name: {each.seed: rows_of(each) for each in seeds} for name, seeds in groups.items()}
    counts = {name: {each.seed: counts_of(each) for each in seeds} for name, seeds in groups.items()}
    base = mean_rows_of(groups[BASE])
    before = {metric: np.mean([of[metric] for of in counts[BASE].values()], axis=0) for metric in _shared(counts[BASE])}
    for name in groups:
        if name == BASE:
            continue
        for metric in (each for each in _shared(rows[name]) if each in base):
            differences = [each[metric] - base[metric] for each in rows[name].values()]
            yield _contrast(name, BASE, metric, differences)
        for metric in (each for each in _shared(counts[name]) if each in before):
            pairs = [(each[metric], before[metric]) for each in counts[name].values()]
            yield _pooled_contrast(name, BASE, metric, pairs)
        for other in against:
            if name == other:
                break  # the cold start is not held against RL
            shared = [seed for seed in rows[name] if seed in rows.get(other, {})]
            if not shared:
                continue
            for metric in _CLAIMED:
                if metric in base and all(metric in rows[each][seed] for each in (name, other) for seed in shared):
                    differences = [rows[name][seed][metric] - rows[other][seed][metric] for seed in shared]
                    yield _contrast(name, other, metric, differences)
                elif all(metric in counts[each][seed] for each in (name, other) for seed in shared):
                    pairs = [(counts[name][seed][metric], counts[other][seed][metric]) for seed in shared]
                    yield _pooled_contrast(name, other, metric, pairs)


def _shared(by_seed: Mapping[int, Mapping[str, Array]]) -> list[str]:
    """The metrics that all seeds have."""
    first, *others = by_seed.values()
    return [metric for metric in first if all(metric in each for each in others)]


def _contrast(name: str, other: str, metric: str, differences: Sequence[Array]) -> Contrast:
    return _as_contrast(name, other, metric, paired_bootstrap(np.stack(differences)))


def _pooled_contrast(name: str, other: str, metric: str, pairs: Sequence[tuple[Array, Array]]) -> Contrast:
    own, others = map(np.stack, zip(*pairs, strict=True))
    score = functools.partial(pooled, metric.removeprefix("target."))
    return _as_contrast(name, other, metric, pooled_bootstrap(own, others, score))


def _as_contrast(name: str, other: str, metric: str, found: Interval) -> Contrast:
    return Contrast(of=name, against=other, metric=metric, value=found.value, low=found.low, high=found.high)
