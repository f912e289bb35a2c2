"""From measurements of arms and seeds to a report: means, spreads, and differences with their intervals.

A verb of its own beside `lsemrl report`: that one renders a finished report again, this one makes it, from arms that
may have been trained anywhere as long as they were measured on the same rows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lsemrl import __version__
from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import BASE, Measured, Rows, timestamp
from lsemrl.languages import is_language
from lsemrl.report.contrasts import Judged
from lsemrl.report.findings import MISSING
from lsemrl.report.folders import Found, GeneralFile
from lsemrl.report.harness import by_arm, harness
from lsemrl.report.paired import contrasts, pairs_of, same_scores
from lsemrl.report.records import GENERAL, TARGET, Arm, Report, Sample
from lsemrl.report.rows import alarms_of, drifts_of, kl_rows_of, mean_rows_of, shared, values_of

_FIRST = (BASE, "cold_start", "cold_start_anchored", "rl", "rl_anchored", "sft", "sft_anchored", "sft_replay")
_SAMPLES = 8
_NONE = Rows(count=0, sha256="")
AGAINST = ("cold_start", "rl")


def tax_report(
    found: Sequence[Found],
    command: str,
    against: Sequence[str] | None = None,
    judged: Mapping[str, Judged] | None = None,
    paths: Sequence[Sequence[str]] = (),
    general: Sequence[GeneralFile] = (),
) -> Report:
    """Set measured arms side by side.

    Args:
        found: Measurements and where they are from; one arm is the base.
        command: What was typed.
        against: Arms, beside the base, that the others are held against; None takes those of `AGAINST` that are there.
        judged: See `find_judgement`.
        paths: Each the arms that are one way of training at rising strength; what the first had lost is compared with
            what each of the others had when they scored the same.
        general: Scores of lm-evaluation-harness, each of an adapter that was measured too.

    Raises:
        UserError: There is no base, `against` or a path names an arm that was not measured, a general.json is of
            another adapter, or the measurements cannot be compared with each other.
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
    for name in against or ():
        if name not in groups:
            raise UserError(f"--against names {name!r}, which nobody measured; choose among {', '.join(order)}")
    asked = by_arm(general, found)
    groups = _told_apart({name: groups[name] for name in order})
    pairs = list(pairs_of(groups, AGAINST if against is None else against))
    report = Report(
        lsemrl=__version__,
        created=timestamp(),
        task=_task(base),
        seed=None,
        command=command,
        machine=_by_arm(groups, lambda each: each.machine),
        versions=_by_arm(groups, lambda each: {"lsemrl": each.lsemrl} | each.versions),
        signatures=base.signatures,
        seconds=sum(measured.seconds for _, measured in found),
        arms=tuple(_arm(groups[name], groups[BASE], (judged or {}).get(name), asked.get(name, ())) for name in order),
        contrasts=tuple(contrasts(groups, pairs)),
        paper=_paper(base),
        setup=_setup(base),
        paths=tuple(map(tuple, paths)),
        general_name=base.general_name,
        text_name=base.text_name,
        unpaired=tuple((each.of, each.against) for each in pairs if against is not None and not each.seeds),
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
    same = same_scores(groups, report.paths, f"target.{report.score}", f"general.{report.kept}")
    return dataclasses.replace(report, same_scores=tuple(same))


def _check(found: Sequence[Found]) -> None:
    """Refuse measurements that say nothing about each other."""
    base = next((pair for pair in found if pair[1].arm == BASE), None)
    if base is None:
        arms = ", ".join(dict.fromkeys(measured.arm for _, measured in found))
        raise UserError(f"no measurement is of the base, only of {arms}: measure the original model too (--arm {BASE})")
    for path, measured in found:
        if fault := _fault(measured, base[1]):
            raise UserError(f"{path} cannot be compared with {base[0]}: {fault}")
    by_arm: dict[tuple[str, int], Path] = {}
    by_weights: dict[tuple[str, str], Path] = {}
    for path, measured in found:
        other = by_arm.setdefault((measured.arm, measured.seed), path)
        if other != path:
            raise UserError(
                f"{path} and {other} are both arm {measured.arm!r}, seed {measured.seed}: give each its own seed or arm"
            )
        weights = measured.adapter_fingerprint or measured.policy_fingerprint
        other = by_weights.setdefault((measured.arm, weights), path) if weights else path
        if other != path:
            one = "adapter" if measured.adapter_fingerprint else "model"
            raise UserError(
                f"{path} and {other} are two seeds of arm {measured.arm!r}, but measurements of one {one}: measure "
                "each seed's own"
            )


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
                return f"{_unlike(key, its, others)}; measure every arm with one configuration and one version"
    return ""


def _unlike(key: str, its: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    if key not in its:
        return f"it was measured without {key}, and the other with {others[key]!r}"
    if key not in others:
        return f"it was measured with {key} {its[key]!r}, and the other without"
    return f"its {key} is {its[key]!r}, not {others[key]!r}"


def _told_apart(groups: Mapping[str, Sequence[Measured]]) -> dict[str, list[Measured]]:
    """The arms under labels that are their own: where several have one, each with its name behind it."""
    labels = Counter(seeds[0].label for seeds in groups.values())
    return {
        name: [dataclasses.replace(each, label=f"{each.label} ({name})") for each in seeds]
        if labels[seeds[0].label] > 1
        else [*seeds]
        for name, seeds in groups.items()
    }


def _paper(base: Measured) -> str:
    """Which of the paper's tasks it is; "" for none."""
    return "translation" if "-" in base.task else "headline" if base.task == "headline" else ""


def _task(base: Measured) -> str:
    """The task for people."""
    if _paper(base) != "translation":
        return f"{base.task}s"
    parts = base.task.split("-")
    cuts = [("-".join(parts[:at]), "-".join(parts[at:])) for at in range(1, len(parts))]
    # A tag may have a script or a region; names of fields that are no tags have whatever they have.
    source, target = next((cut for cut in cuts if all(map(is_language, cut))), cuts[0])
    return f"translation {source}→{target}"


def _setup(base: Measured) -> dict[str, str]:
    rows = ", ".join(f"{rows.count} {part} ({rows.sha256[:8]})" for part, rows in base.data.items())
    conditions = ", ".join(f"{key} {value}" for key, value in base.conditions.items())
    return {"base model": f"{base.base} ({base.base_fingerprint})", "rows": rows, "conditions": conditions}


def _by_arm(groups: Mapping[str, Sequence[Measured]], told: Callable[[Measured], Mapping[str, Any]]) -> dict[str, Any]:
    """What the base's measurement tells, and beside it whatever else those of an arm do."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for seeds in groups.values() for each in seeds for key in told(each)):
        first, others = told(groups[BASE][0]).get(key, MISSING), []
        for seeds in groups.values():
            its = list(dict.fromkeys(told(each).get(key, MISSING) for each in seeds))
            if its != [first]:
                others.append(f"{seeds[0].label}: {', '.join(map(str, its))}")
        found[key] = f"{first} ({'; '.join(others)})" if others else first
    return found


def _arm(
    seeds: Sequence[Measured], bases: Sequence[Measured], judged: Judged | None, asked: Sequence[GeneralFile]
) -> Arm:
    first, trained = seeds[0], seeds[0].arm != BASE
    base = mean_rows_of(bases)
    each = [values_of(measured, base) for measured in seeds]
    by_seed = {metric: tuple(values[metric] for values in each) for metric in shared(each)}

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
        harness=harness(asked, seeds),
        judge_win=judged.win if judged else None,
        judged=judged,
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
