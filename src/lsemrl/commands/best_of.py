"""`lsemrl best-of`: the best of a group for every training row of a GRPO run, as rows to train on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lsemrl.commands.trainer import run_trainer
from lsemrl.errors import UserError
from lsemrl.places import wherever


def best_of(words: list[str]) -> None:
    """Run the verb.

    Args:
        words: Its name, and a GRPO run's configuration as for `lsemrl fit`.

    Raises:
        UserError: They are of another run; see also `write_best`.
    """
    cli = run_trainer(words, run=False)
    # Lightning and torch, for which words that cannot be do not wait
    from lsemrl.commands.best_rows import write_best
    from lsemrl.data.base import TaskData
    from lsemrl.modules.grpo import GRPO

    for name, value, wanted in (("model", cli.model, GRPO), ("data", cli.datamodule.data, TaskData)):
        if not isinstance(value, wanted):
            raise UserError(
                f"{name} is {type(value).__name__}; best-of takes the configuration of a GRPO run on one task"
            )
    # Not what is the trainer's, which takes no part; nor what names rows and weights, which are known by what they are.
    whole = json.loads(cli.parser.dump(cli.config, format="json", skip_none=False, skip_check=True))
    fields = whole["model"]["init_args"] | {"policy": repr(cli.model.policy.settings.without_weights())}
    folder = Path(cli.trainer.default_root_dir)
    asked = wherever({"seed_everything": whole["seed_everything"], "model": fields}, os.path.realpath(folder))
    write_best(cli.model, cli.datamodule.data, folder, asked)
