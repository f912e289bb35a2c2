"""`lsemrl general`: lm-evaluation-harness, before and after."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lsemrl.commands.quiet import loading, quiet
from lsemrl.evaluation.harness_scores import table
from lsemrl.evaluation.harness_settings import HarnessSettings, check_policy
from lsemrl.files import try_folder
from lsemrl.foreign import visible
from lsemrl.modules.policy_settings import PolicySettings


def general(
    *, settings: HarnessSettings, policy: PolicySettings = PolicySettings(), output: Path = Path("runs/general")
) -> None:
    """Ask a policy with its adapter off and on, and print what differs.

    Args:
        settings: What is asked, and how.
        policy: The model and its adapter.
        output: Folder for general.json; another for each adapter.
    """
    check_policy(policy)
    try_folder(output, "--output")
    loading(policy.model)
    from lsemrl.evaluation.harness import run_harness  # peft, for which words that cannot be do not wait

    quiet()
    found = run_harness(policy, settings, output)
    Console().print(table(found))
    for reason in found.skipped.values():
        print(visible(f"skipped: {reason}"))
    print(output / "general.json")
