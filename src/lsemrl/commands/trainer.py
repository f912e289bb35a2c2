"""Lightning's verbs, and what is said around them; `trainer_cli` is what runs them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lsemrl.commands.quiet import loading, quiet
from lsemrl.config_files import prepare_configs
from lsemrl.foreign import visible
from lsemrl.modules.alarm_log import Alarmed
from lsemrl.modules.run_summary import run_summary

TRAINER_VERBS = {
    "fit": "train a policy: SFT or GRPO, as the configuration says",
    "validate": "score a policy on the validation rows",
    "test": "score a policy on the test rows",
    "predict": "write a policy's outputs for the test rows",
    "best-of": "keep the best of a group for every training row of a GRPO run (self-SFT)",
}
"""What takes the configuration of a run, and what it is for."""


def run_trainer(words: list[str], callbacks: Sequence[Any] = (), *, run: bool = True) -> Any:
    """Run one of Lightning's verbs.

    Args:
        words: The verb and its options.
        callbacks: Lightning callbacks beside those that the configuration names.
        run: Whether to run the verb, or only to make what its configuration says.

    Returns:
        The `TrainerCLI`, whose trainer and model can be asked further.

    Raises:
        Alarmed: An alarm that was to stop the run came at its end, when all is written.
    """
    words = prepare_configs(words)
    loading("Lightning")
    quiet()
    # Lightning's advice on loader workers is not about this program.
    for about in (
        "does not have many workers",
        "LightningCLI's args parameter",
        "Experiment logs directory",
        "GPU available but not used",  # whoever says cpu knows, and Apple's is not to be used
        "in eval mode at the start of training",
        r".*torch\.distributed\.(all_gather_into|reduce_scatter)_tensor",  # their new names are too new
        "isinstance.treespec, LeafSpec",
        "predict returned None",  # outputs are in a file
    ):
        warnings.filterwarnings("ignore", message=f".*{about}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_chatter)
    from lsemrl.commands.trainer_cli import TrainerCLI  # Lightning, for which words that cannot be do not wait

    with ExitStack() as until:
        cli: Any = TrainerCLI(words, TRAINER_VERBS[words[0]], callbacks, run=run, until=until)
    if run and words[0] == "fit" and cli.trainer.is_global_zero and not callbacks and not cli.trainer.fast_dev_run:
        model, monitor = cli.model, cli.config.fit.checkpoints.monitor
        from lsemrl.data.base import TaskData

        data = getattr(cli.datamodule.data, "main", cli.datamodule.data)
        by_rows = isinstance(data, TaskData) and len(data.plan.task.inputs) > 1
        base, scale = model.policy.settings.model, model.policy.settings.adapter_scale
        for line in run_summary(model.folder, monitor, base, model.step_name, by_rows=by_rows, adapter_scale=scale):
            print(visible(line))
        if model.alarm:  # only the last look, after the last step, told it
            raise Alarmed(f"the run is complete, and an alarm came at its end ({model.alarm})")
    return cli


def _no_chatter(record: Any) -> bool:
    """Keep what a run says of its data, drop Lightning's greetings; named, so that adding it again adds nothing."""
    greetings = ("GPU available", "TPU available", "💡 Tip", "You are using a CUDA device")  # which asks for Python
    return not str(record.getMessage()).startswith(greetings)
