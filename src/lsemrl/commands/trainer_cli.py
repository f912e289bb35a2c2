"""Lightning's command line with our two parts in it: policies that are trained, and data for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from lsemrl.commands.loggers import LOGGERS, named_logger
from lsemrl.commands.trained_rows import Part, trained_rows
from lsemrl.config_files import CONFIG_VERSION
from lsemrl.data.base import Data, TaskData
from lsemrl.devices import computing_device
from lsemrl.errors import UserError, reason_of
from lsemrl.files import try_folder
from lsemrl.finite import check_all_finite, check_all_seeds
from lsemrl.foreign import visible
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.checkpoints import Checkpoints
from lsemrl.modules.ground import given_to
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.modules.progress_lines import ProgressLines
from lsemrl.modules.run_folder import Asked, RunFolder
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.modules.trainer_settings import check_manual
from lsemrl.runs import AUTO, NEVER, checkpoints, find_run, is_rank_zero

_HELD_OUT: dict[str, Part] = {"fit": "validation", "validate": "validation", "test": "test", "predict": "test"}
"""Which rows a verb takes for such that the policy has not seen."""


class TrainerCLI(LightningCLI):
    """Makes what the words of a verb say, and runs it; its trainer and model can be asked further.

    Args:
        words: The verb and its options.
        about: What the verb does.
        callbacks: Lightning callbacks beside those that the configuration names.
        run: Whether to run the verb, or only to make what its configuration says.
        until: Closed once the verb has been run.
    """

    def __init__(
        self, words: Sequence[str], about: str, callbacks: Sequence[Any], *, run: bool, until: ExitStack
    ) -> None:
        self._verb, self._until, self._word = words[0], until, ""
        told = {
            "exit_on_error": False,
            "usage": f"lsemrl {self._verb} --config FILE ... [--field value ...]",
            "description": f"{about}. Every field, also of model and data, with its value and a comment: "
            f"lsemrl {self._verb} --config FILE --print_config.",
        }
        super().__init__(
            PolicyModule,
            subclass_mode_model=True,
            seed_everything_default=1,
            trainer_defaults={"callbacks": list(callbacks)},
            auto_configure_optimizers=False,
            save_config_callback=None,  # ours is in RunFolder
            load_from_checkpoint_support=False,  # nor are checkpoints Lightning's
            parser_kwargs={"exit_on_error": False, self._verb: told} if run else told,
            args=list(words if run else words[1:]),
            run=run,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb alone: the others would be described too, which takes a second."""
        asked = LightningCLI.subcommands().get(self._verb)
        # Lightning would read a pickle; ours is checkpoints.resume.
        return {} if asked is None else {self._verb: asked | {"ckpt_path", "weights_only"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As add_lightning_class_args does, but for the logger, which may be a word."""
        parser.add_class_arguments(
            self.trainer_class, "trainer", fail_untyped=False, instantiate=False, sub_configs=True, skip={"logger"}
        )
        parser.groups["trainer"].add_argument(  # type: ignore[index]
            "--trainer.logger",
            type=Literal[*LOGGERS] | Logger | Iterable[Logger] | bool | None,
            help=f"Loggers beside the run's own files: {', '.join(LOGGERS)}, or classes (default: none).",
        )
        parser.set_defaults({"trainer.log_every_n_steps": 1})  # else a run of fewer than 50 would log nothing
        for name, kind in (("model", PolicyModule), ("data", Data)):
            parser.add_subclass_arguments(kind, name, fail_untyped=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own."""
        parser.add_argument(
            "--config_version", type=int, default=CONFIG_VERSION, help="Format of this file; leave it as it is."
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse seeds, too, that some library would."""
        super().parse_arguments(parser, args)
        config = self.config.as_dict()
        check_all_seeds(config.get(self._verb, config))

    @property
    def _settings(self) -> Any:
        """What the configuration says, once it is known whether a verb is run by it."""
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        """Settle where the run is, and from where it goes on."""
        if not self.subcommand:
            return
        config = self._settings
        check_all_finite(config.as_dict())
        if config.trainer.enable_checkpointing is False or config.trainer.fast_dev_run:
            config.trainer.enable_checkpointing, config.checkpoints.keep = None, 0
        parser, resume = self._parser(self.subcommand), config.checkpoints.resume
        again, named = resume != NEVER, Path(resume) if checkpoints(Path(resume)) else None
        if named:
            config.checkpoints.resume = AUTO  # it is the same run, and config.yaml need not say where it lay
        settled = {"skip_none": False, "skip_check": True}  # it has been checked as it was read
        whole = json.loads(parser.dump(config, format="json", **settled))
        checkpoint = None
        if config.trainer.fast_dev_run:  # which leaves nothing
            root = Path(self._until.enter_context(TemporaryDirectory()))
        else:
            root = Path(config.trainer.default_root_dir or "runs")
            if is_rank_zero() and self.subcommand in ("fit", "predict"):
                try_folder(root, "trainer.default_root_dir")
                checkpoint = find_run(root, whole, named) if self.subcommand == "fit" and again else None
        self._asked = Asked(
            root=root, config=whole, text=parser.dump(config, **settled), resume=again, checkpoint=checkpoint
        )
        if isinstance(config.trainer.logger, str):
            self._word, config.trainer.logger = config.trainer.logger, None

    def instantiate_classes(self) -> None:
        """Let Lightning's trainer see the data as it wants to, and the model what its own parts do not tell."""
        super().instantiate_classes()
        part = _HELD_OUT.get(self._verb)
        main = getattr(self.datamodule, "main", self.datamodule)
        if part and isinstance(main, TaskData) and is_rank_zero():
            for line in trained_rows(self.model.policy.settings.adapter_folder, part, {"data": main}):
                print(visible(line), file=sys.stderr)
        self.model.given = given_to(self._settings.as_dict()["model"]["init_args"].get("rewards") or {})
        self.datamodule = TrainerData(self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """With our record of the run in place of Lightning's, and never on Apple's GPU unasked."""
        accelerator = self._settings.trainer.accelerator
        if accelerator == "auto":
            kwargs["accelerator"] = computing_device().type
        try:
            trainer = super().instantiate_trainer(logger=False, **kwargs)
        except (ImportError, RuntimeError, ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {reason_of(error, 300)}") from error
        computing_device(trainer.strategy.root_device.type, f"the device of trainer.accelerator {accelerator!r}")
        check_manual(trainer)
        if self.subcommand and trainer.world_size == 1 and not is_rank_zero():
            raise UserError(
                "several processes were started, but trainer.devices times trainer.num_nodes is 1; add "
                "configs/ddp.yaml or configs/fsdp.yaml, or start one process"
            )
        config = self._settings
        sizes = getattr(config.trainer.strategy, "init_args", {})
        sharded, split = sizes.get("data_parallel_size"), sizes.get("tensor_parallel_size")
        if sharded is not None and (sharded, split) != (trainer.world_size, 1):
            raise UserError(
                f"trainer.strategy has data_parallel_size {sharded} and tensor_parallel_size {split}; set them to "
                f"{trainer.world_size}, which is trainer.devices times trainer.num_nodes, and 1"
            )
        if self.subcommand:
            trainer.loggers = [] if config.trainer.fast_dev_run else self._loggers()
            trainer.callbacks.insert(0, RunFolder(self._asked))  # type: ignore[attr-defined]
        if self.subcommand == "fit":
            trainer.loggers = [MetricsLog(events=True), *trainer.loggers]
            if config.trainer.enable_progress_bar is not False and not sys.stderr.isatty():
                kept = [each for each in trainer.callbacks if not isinstance(each, ProgressBar)]  # type: ignore[attr-defined]
                trainer.callbacks[:] = [*kept, ProgressLines()]  # type: ignore[attr-defined]
        return trainer

    def _loggers(self) -> list[Logger]:
        """Those of the user's own."""
        if self._word:
            return [named_logger(self._word, self._asked.root)]
        given = self._get(self.config_init, "trainer").logger
        if isinstance(given, Logger):
            return [given]
        return list(given) if isinstance(given, Iterable) else []  # true and false: the run has its own log anyway
