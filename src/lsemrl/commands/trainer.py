"""Lightning's command line, with our two parts in it: policies that are trained, and data for them."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from lsemrl.commands.loggers import LOGGERS, named_logger
from lsemrl.commands.quiet import loading, quiet
from lsemrl.config_files import CONFIG_VERSION, prepare_configs
from lsemrl.errors import UserError, reason_of
from lsemrl.files import try_folder
from lsemrl.finite import check_all_finite, check_all_seeds
from lsemrl.foreign import visible
from lsemrl.modules.alarm_log import Alarmed
from lsemrl.modules.run_summary import run_summary
from lsemrl.runs import AUTO, NEVER, checkpoints, find_run, is_rank_zero

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

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
        The LightningCLI, whose trainer and model can be asked further.

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
        "in eval mode at the start of training",
        r".*torch\.distributed\.(all_gather_into|reduce_scatter)_tensor",  # their new names are too new
        "isinstance.treespec, LeafSpec",
    ):
        warnings.filterwarnings("ignore", message=f".*{about}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_chatter)
    with ExitStack() as stack:
        cli = _trainer_cli(words, list(callbacks), run, stack)
    if run and words[0] == "fit" and cli.trainer.is_global_zero and not callbacks and not cli.trainer.fast_dev_run:
        for line in run_summary(cli.model.folder, cli.config.fit.checkpoints.monitor, cli.model.policy.settings.model):
            print(visible(line))
        if cli.model.alarm:  # only the last look, after the last step, told it
            raise Alarmed(f"the run is complete, and an alarm came at its end ({cli.model.alarm})")
    return cli


def _trainer_cli(words: list[str], callbacks: list[Any], run: bool, stack: ExitStack) -> Any:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import ProgressBar
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.loggers import Logger

    from lsemrl.data.base import Data
    from lsemrl.modules.base import PolicyModule
    from lsemrl.modules.checkpoints import Checkpoints
    from lsemrl.modules.metrics_log import MetricsLog
    from lsemrl.modules.progress_lines import ProgressLines
    from lsemrl.modules.run_folder import Asked, RunFolder
    from lsemrl.modules.trainer_data import TrainerData
    from lsemrl.modules.trainer_settings import check_manual

    verb, words = words[0], words if run else words[1:]
    told = {
        "exit_on_error": False,
        "usage": f"lsemrl {verb} --config FILE ... [--field value ...]",
        "description": f"{TRAINER_VERBS[verb]}. Every field, also of model and data, with its value and a comment: "
        f"lsemrl {verb} --config FILE --print_config.",
    }

    class Cli(LightningCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            # The others would be described too, which takes a second. Lightning would read a pickle; ours is
            # checkpoints.resume.
            asked = LightningCLI.subcommands().get(verb) if run else None
            return {} if asked is None else {verb: asked | {"ckpt_path", "weights_only"}}

        def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            # As add_lightning_class_args does, but for the logger, which may be a word.
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
            parser.add_argument(
                "--config_version", type=int, default=CONFIG_VERSION, help="Format of this file; leave it as it is."
            )
            parser.add_lightning_class_args(Checkpoints, "checkpoints")

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            super().parse_arguments(parser, args)
            config = self.config.as_dict()
            check_all_seeds(config[config["subcommand"]] if run else config)

        def before_instantiate_classes(self) -> None:
            if not run:
                return
            config = self.config[self.subcommand]
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
                root = Path(stack.enter_context(TemporaryDirectory()))
            else:
                root = Path(config.trainer.default_root_dir or "runs")
                if is_rank_zero() and self.subcommand in ("fit", "predict"):
                    try_folder(root, "trainer.default_root_dir")
                    checkpoint = find_run(root, whole, named) if self.subcommand == "fit" and again else None
            self.asked = Asked(
                root=root,
                config=whole,
                text=parser.dump(config, **settled),
                resume=again,
                checkpoint=checkpoint,
            )
            self.word = None
            if isinstance(config.trainer.logger, str):
                self.word, config.trainer.logger = config.trainer.logger, None

        def instantiate_classes(self) -> None:
            super().instantiate_classes()
            self.datamodule = TrainerData(self.datamodule)

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            try:
                trainer = super().instantiate_trainer(logger=False, **kwargs)
            except (ImportError, RuntimeError, ValueError, MisconfigurationException) as error:
                raise UserError(f"trainer: {reason_of(error, 300)}") from error
            check_manual(trainer)
            if run and trainer.world_size == 1 and not is_rank_zero():
                raise UserError(
                    "several processes were started, but trainer.devices times trainer.num_nodes is 1; add "
                    "configs/ddp.yaml or configs/fsdp.yaml, or start one process"
                )
            config = self.config[self.subcommand] if run else self.config
            sizes = getattr(config.trainer.strategy, "init_args", {})
            sharded, split = sizes.get("data_parallel_size"), sizes.get("tensor_parallel_size")
            if sharded is not None and (sharded, split) != (trainer.world_size, 1):
                raise UserError(
                    f"trainer.strategy has data_parallel_size {sharded} and tensor_parallel_size {split}; set them to "
                    f"{trainer.world_size}, which is trainer.devices times trainer.num_nodes, and 1"
                )
            if run:
                trainer.loggers = [] if config.trainer.fast_dev_run else self._loggers()
                trainer.callbacks.insert(0, RunFolder(self.asked))  # type: ignore[attr-defined]
                if self.subcommand == "fit":
                    trainer.loggers = [MetricsLog(events=True), *trainer.loggers]
                    if config.trainer.enable_progress_bar is not False and not sys.stderr.isatty():
                        kept = [each for each in trainer.callbacks if not isinstance(each, ProgressBar)]  # type: ignore[attr-defined]
                        trainer.callbacks[:] = [*kept, ProgressLines()]  # type: ignore[attr-defined]
            return trainer

        def _loggers(self) -> list[Logger]:
            """Those of the user's own."""
            if self.word:
                return [named_logger(self.word, self.asked.root)]
            given = self._get(self.config_init, "trainer").logger
            if isinstance(given, Logger):
                return [given]
            return list(given) if isinstance(given, Iterable) else []  # true and false: the run has its own log anyway

    return Cli(
        PolicyModule,
        subclass_mode_model=True,
        seed_everything_default=1,
        trainer_defaults={"callbacks": callbacks},
        auto_configure_optimizers=False,
        save_config_callback=None,  # ours is in RunFolder
        load_from_checkpoint_support=False,  # nor are checkpoints Lightning's
        parser_kwargs={"exit_on_error": False, verb: told} if run else told,
        args=words,
        run=run,
    )


def _no_chatter(record: Any) -> bool:
    """Keep what a run says of its data, drop Lightning's greetings; named, so that adding it again adds nothing."""
    greetings = ("GPU available", "TPU available", "💡 Tip", "You are using a CUDA device")  # which asks for Python
    return not str(record.getMessage()).startswith(greetings)
