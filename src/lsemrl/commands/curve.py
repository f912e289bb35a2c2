"""`lsemrl curve`: a finished adapter at several strengths, and the one that gains most for what may be lost."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lsemrl.commands.named import NEWEST, find
from lsemrl.commands.quiet import loading, quiet
from lsemrl.commands.trained_rows import measured_rows
from lsemrl.errors import UserError
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.evaluation.measurement import BASE, FILE
from lsemrl.foreign import visible
from lsemrl.json_records import UNREADABLE
from lsemrl.reading import read_json
from lsemrl.report.records import SCORES, Report

_SCALES = [0.25, 0.5, 0.75, 1.0]


def curve(
    run: str,
    *,
    typed: list[str],
    settings: MeasureSettings,
    output: Path,
    scales: list[float] | None = None,
    lost: float = 2.0,
    root: Path = Path("runs"),
) -> None:
    """Measure the adapter of RUN at every scale, set them side by side, and say which is best.

    Args:
        run: A finished run, "newest", or an adapter's folder.
        typed: The command, for whoever wants these numbers again.
        settings: On what, as for lsemrl measure; the policy is RUN's.
        output: Folder for a measurement each, and for the report. What was measured there of the same is not again.
        scales: In [0, 1]; by default .25, .5, .75 and 1. 0 is the base, which is always measured.
        lost: Percentage points of general ability that may be lost.
        root: Where "newest" is looked for.

    Raises:
        UserError: RUN has no adapter, a scale is beyond [0, 1], or nothing is measured that could be lost.
    """
    asked = _SCALES if scales is None else scales
    if not all(0 <= scale <= 1 for scale in asked) or not any(asked):
        raise UserError(f"--scales is {asked}; give numbers in [0, 1], at least one of them above 0")
    if not lost >= 0:
        raise UserError(f"--lost is {lost}; give percentage points, 0 or more")
    if settings.general is None:
        raise UserError(
            "general is null, so that nothing is measured that could be lost; set it, as for lsemrl measure"
        )
    found = find(run, root)
    settings.check_files()
    loading(run)
    from lsemrl.commands.trained import take_up  # peft, for which words that cannot be do not wait
    from lsemrl.evaluation.measure import read_measured, run_measure
    from lsemrl.report.findings import unmeasured
    from lsemrl.report.tax_report import tax_report
    from lsemrl.report.write import table, write_report

    quiet()
    policy = take_up(found).policy
    if policy.adapter is None:
        raise UserError(f"RUN is {run!r}, which has no adapter to scale; name a run with LoRA, or an adapter")
    _check_folder(output, Path(policy.adapter))
    scale_of = {BASE: 0.0} | {_arm_of(at): at for at in sorted({*asked} - {0.0})}
    whole = replace(settings, arm="trained", policy=policy)
    for line in measured_rows(whole):
        print(visible(line), file=sys.stderr)
    read = battery, scorer = read_measured(whole)
    if not set(scorer.gives(battery.target)) & set(SCORES):  # told here, before anything is measured
        raise UserError(
            f"metrics.names is {list(settings.metrics.names)}, by none of which scales are compared; add chrf, or what "
            f"else gives one of {', '.join(SCORES)}"
        )
    measured = []
    for arm, scale in scale_of.items():
        at = replace(policy, adapter_scale=scale) if scale else replace(policy, adapter=None)
        label = f"at {_told(scale)}" if scale else "Base"
        one = replace(settings, arm=arm, label=label, policy=at)
        print(f"measuring {label}", file=sys.stderr)
        measured.append((output / arm, run_measure(one, output / arm, read)))
    # Another run may be the newest by the time that somebody repeats it.
    command = shlex.join(str(found) if word == run == NEWEST else word for word in typed)
    paths = [[*scale_of][1:]]
    report = tax_report(measured, command=command, paths=paths)
    nothing_to_lose = unmeasured(report)
    best = None if nothing_to_lose else best_arm(report, lost)
    if best:  # which the plots show by its label
        chosen = _told(scale_of[best])
        label = f"at {chosen}, best within {lost:g} points"
        measured = [(path, replace(one, label=label) if one.arm == best else one) for path, one in measured]
        report = tax_report(measured, command=command, paths=paths)
        said = (
            f"of the scales that lose at most {lost:g} points of {report.kept_name}, {chosen} gains most; take "
            f"it by --adapter-scale {chosen} (generate, chat, export), or policy.adapter_scale in a configuration"
        )
    elif nothing_to_lose:
        said = f"no scale is best: {nothing_to_lose}"
    elif not best_arm(report, math.inf):
        said = f"no scale is best: none gains {SCORES[report.score]} over the base"
    else:
        said = (
            f"no scale gains and loses at most {lost:g} points of {report.kept_name}; try smaller ones, or train with "
            "an anchor"
        )
    page = write_report(report, output, "--output")
    console = Console()
    console.print(table(report))
    console.print(visible(said), markup=False, highlight=False, soft_wrap=True)
    console.print(page, markup=False)


def _arm_of(scale: float) -> str:
    return f"scale_{scale}".replace(".", "_").replace("-", "_")  # 1e-05


def _told(scale: float) -> str:
    return str(scale).removesuffix(".0")


def _check_folder(output: Path, adapter: Path) -> None:
    """Refuse a folder with the curve of another adapter, which would be mixed with this one's."""
    from lsemrl.modules.adapters.files import adapter_fingerprint

    for path in sorted(output.glob(f"scale_*/{FILE}")):
        try:
            measured = read_json(path)["adapter_fingerprint"].partition(" * ")[0]
        except UNREADABLE:
            continue
        if measured != adapter_fingerprint(adapter):
            raise UserError(f"--output is {str(output)!r}, which holds another adapter's curve; name another folder")


def best_arm(report: Report, lost: float) -> str | None:
    """The arm that gained most on the new task among those that lost at most `lost` points; None where none did."""

    def loss(arm: str) -> float:
        kept = report.kept
        return 100 * (report.base.general[kept] - next(one for one in report.arms if one.name == arm).general[kept])

    scores = {arm.name: arm.target.get(report.score, -math.inf) for arm in report.trained}
    before = report.base.target.get(report.score, -math.inf)
    allowed = [arm for arm, score in scores.items() if score > before and loss(arm) <= lost + 1e-9]
    return max(allowed, key=lambda arm: scores[arm], default=None)
