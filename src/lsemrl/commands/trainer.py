"""Lightning's command line, with our two parts in it: policies that are trained, and data for them."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsemrl.commands.loggers import LOGGERS
from lsemrl.commands.quiet import loading, quiet
from lsemrl.config_files import CONFIG_VERSION, prepare_configs
from lsemrl.errors import UserError, reason_of
from lsemrl.files import try_folder
from lsemrl.finite import check_all_finite, check_all_seeds
from lsemrl.foreign import visible
from lsemrl.modules.run_summary import run_summary
from lsemrl.runs import NEVER, find_run, is_rank_zero

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
    """
    words, named = _without_logger(prepare_configs(words))
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
    cli = _trainer_cli(words, list(callbacks), run, named)
    if run and words[0] == "fit" and cli.trainer.is_global_zero and not callbacks and not cli.trainer.fast_dev_run:
        for line in run_summary(cli.model.folder, cli.config.fit.checkpoints.monitor, cli.model.policy.settings.model):
            print(visible(line))
    return cli


def _trainer_cli(words: list[str], callbacks: list[Any], run: bool, named: Callable[[Path], Any] | None) -> Any:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import ProgressBar
    from lightning.pytorch.cli import LightningCLI

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
            parser.add_lightning_class_args(self.trainer_class, "trainer")
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
            if config.trainer.enable_checkpointing is False:
                config.trainer.enable_checkpointing, config.checkpoints.keep = None, 0
            parser, again = self._parser(self.subcommand), config.checkpoints.resume != NEVER
            settled = {"skip_none": False, "skip_check": True}  # it has been checked as it was read
            whole = json.loads(parser.dump(config, format="json", **settled))
            root = checkpoint = None
            if config.trainer.logger in (None, True):
                root = Path(config.trainer.default_root_dir or "runs")
            if root and is_rank_zero() and self.subcommand in ("fit", "predict") and not config.trainer.fast_dev_run:
                try_folder(root, "trainer.default_root_dir")
                checkpoint = find_run(root, whole) if self.subcommand == "fit" and again else None
            self.asked = Asked(
                root=root,
                config=whole,
                text=parser.dump(config, **settled),
                resume=again,
                checkpoint=checkpoint,
            )

        def instantiate_classes(self) -> None:
            super().instantiate_classes()
            self.datamodule = TrainerData(self.datamodule)

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            ours = run and self.asked.root is not None
            try:
                trainer = super().instantiate_trainer(**({"logger": False} if ours else {}), **kwargs)
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
            if run and not config.trainer.fast_dev_run:
                trainer.callbacks.insert(0, RunFolder(self.asked))  # type: ignore[attr-defined]
                if ours and self.subcommand == "fit":
                    assert self.asked.root is not None
                    trainer.loggers = [MetricsLog(events=True), *([named(self.asked.root)] if named else [])]
                    if config.trainer.enable_progress_bar is not False and not sys.stderr.isatty():
                        kept = [each for each in trainer.callbacks if not isinstance(each, ProgressBar)]  # type: ignore[attr-defined]
                        trainer.callbacks[:] = [*kept, ProgressLines()]  # type: ignore[attr-defined]
            return trainer

    return Cli(
        PolicyModule,
        subclass_mode_model=True,
        seed_everything_default=1,
        trainer_defaults={"callbacks": callbacks, "log_every_n_steps": 1},
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


def _without_logger(words: list[str]) -> tuple[list[str], Callable[[Path], Any] | None]:
    """The words but for `--trainer.logger NAME`, and what makes the logger of that name beside the run's own.

    Raises:
        UserError: Its package is not installed.
    """
    others, rest, name = [], iter(words), ""
    for word in rest:
        option, equals, value = word.partition("=")
        if option == "--trainer.logger" and (value or (value := next(rest, ""))) in LOGGERS:
            name = value
        else:
            others += [word] if equals or option != "--trainer.logger" else [word, value]
    if not name:
        return words, None
    make, package = LOGGERS[name]
    if find_spec(package) is None:
        raise UserError(f"--trainer.logger is {name}, whose package is not installed; pip install {package}")
    return others, make
