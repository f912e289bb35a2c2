"""`lsemrl measure`: one policy against the original base."""

from __future__ import annotations

import sys
from pathlib import Path

from lsemrl.commands.quiet import loading, quiet
from lsemrl.commands.trained_rows import measured_rows
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.evaluation.measurement import FILE, check_own
from lsemrl.foreign import visible


def measure(*, settings: MeasureSettings, output: Path) -> None:
    """Measure a policy, and print its scores.

    Args:
        settings: Which one, and on what.
        output: Folder for measurement.json.
    """
    settings.check_files()
    check_own(output, settings.arm, settings.seed)
    for line in measured_rows(settings):
        print(visible(line), file=sys.stderr)
    loading(settings.policy.adapter or settings.policy.model)
    from lsemrl.evaluation.measure import run_measure  # peft, for which words that cannot be do not wait

    quiet()
    measured = run_measure(settings, output)
    general = {measured.general_name: measured.general} if measured.general else {}
    for title, scores in ({"new task": measured.target} | general).items():
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print(visible(f"{measured.label}, {title}: {told}"))
    print(output / FILE)
