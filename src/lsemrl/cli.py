"""The command line: Lightning's fit, validate, test and predict, and the project's own verbs.

`main` answers --help without importing torch, and turns a user's mistake into one sentence and exit code 2. A fault of
ours keeps its traceback.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsemrl import __version__
from lsemrl.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser as TypedParser
    from lightning.pytorch.cli import LightningArgumentParser

CONFIGS = next(
    folder for folder in (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs") if folder.is_dir()
)
"""The shipped configurations: inside an installed package, or beside src/ in a checkout."""
CONFIG_VERSION = 1
"""Raised when a configuration of an older version would be misread."""

_TRAINER_VERBS = {
    "fit": "train a policy: SFT or GRPO, as the configuration says",
    "validate": "score a policy on the validation rows",
    "test": "score a policy on the test rows",
    "predict": "write a policy's outputs for the test rows",
}
_OWN_VERBS = {
    "generate": "answer texts with a finished run: a file, standard input, or at a prompt",
    "export": "a finished run as folders for plain peft and transformers, with a model card",
    "demo": "the main job on the embedded world: cold start, RL, strong SFT, evaluation, report",
    "report": "render a report.json again as Markdown, HTML and plots",
    "measure": "measure one policy against the original base: gain, tax, divergence, every row",
    "tax": "set measured arms side by side, over seeds: tables with intervals, plots, pages",
    "judge": "compare two arms' predictions row by row, by a language model or by the oracle",
    "general": "general ability before and after training, by lm-evaluation-harness",
    "best-of": "draw a group for every training row of a GRPO run and keep the best as rows for SFT (self-SFT)",
    "fit-reward": "adapt a reward encoder to parallel pairs, measure it, and derive tau from a cold start",
    "experiment": "run the stages of an experiment for every seed, each in a process of its own, and only where needed",
    "build-micro": "rebuild the embedded policy, encoder and cold start from a seed",
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Words after the program's name; None takes them from the process.

    Raises:
        SystemExit: 2 for a user's mistake, told in one sentence on standard error.
    """
    words = list(sys.argv[1:] if args is None else args)
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help"):
        print(_help())
        return
    if verb == "--version":
        print(f"lsemrl {__version__}")
        return
    verbs: dict[str, Callable[[list[str]], None]] = {
        **dict.fromkeys(_TRAINER_VERBS, lambda rest: run_trainer([verb, *rest])),
        "generate": _generate,
        "export": _export,
        "demo": _demo,
        "report": _report,
        "measure": _measure,
        "tax": _tax,
        "judge": _judge,
        "general": _general,
        "best-of": _best_of,
        "fit-reward": _fit_reward,
        "experiment": _experiment,
        "build-micro": _build_micro,
    }
    try:
        if verb not in verbs:
            raise UserError(f"there is no verb {verb!r}; choose one of {', '.join(verbs)}")
        verbs[verb](words[1:])
    except Exception as error:
        sentence = users_mistake(error, verb)
        if sentence is None:
            raise
        print(f"lsemrl: error: {sentence}", file=sys.stderr)
        raise SystemExit(2) from error


def _help() -> str:
    width = max(map(len, (*_TRAINER_VERBS, *_OWN_VERBS)))

    def lines(verbs: dict[str, str]) -> str:
        return "\n".join(f"  {verb:<{width}}  {text}" for verb, text in verbs.items())

    return (
        f"lsemrl {__version__}: teach a language model a low-resource language, and see what it lost\n\n"
        f"usage: lsemrl VERB [--config FILE ...] [--field value ...]\n\n"
        f"{lines(_TRAINER_VERBS)}\n\n{lines(_OWN_VERBS)}\n\n"
        "lsemrl VERB --help explains a verb.\n"
        "lsemrl fit --config FILE --print_config shows every field with its comment."
    )


def run_trainer(words: list[str], callbacks: Sequence[Any] = (), *, run: bool = True) -> Any:
    """Run one of Lightning's verbs.

    Args:
        words: The verb and its options; without the verb if `run` is False.
        callbacks: Lightning callbacks beside those that the configuration names.
        run: Whether to run the verb, or only to make what its configuration says.

    Returns:
        The LightningCLI, whose trainer and model can be asked further.
    """
    import logging
    import warnings

    from jsonargparse import set_parsing_settings
    from transformers.utils.logging import disable_progress_bar

    _check_configs(words)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    words = ["--print_config=comments" if word == "--print_config" else word for word in words]
    # Lightning's advice on loader workers and log intervals is not about this program.
    for about in (
        "does not have many workers",
        "smaller than the logging interval",
        "LightningCLI's args parameter",
        "Experiment logs directory",
        "in eval mode at the start of training",
        "is_gradient_checkpointing",
        "isinstance.treespec, LeafSpec",
        "Using ModelCheckpoint with manual optimization",
    ):
        warnings.filterwarnings("ignore", message=f".*{about}")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_chatter)
    disable_progress_bar()
    return _trainer_cli(words, list(callbacks), run)


def _trainer_cli(words: list[str], callbacks: list[Any], run: bool) -> Any:
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.cli import LightningCLI

    from lsemrl.modules.base import PolicyModule

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument(
                "--config_version", type=int, default=CONFIG_VERSION, help="Format of this file; leave it as it is."
            )

        def before_instantiate_classes(self) -> None:
            if not run:
                return
            trainer = self.config[self.subcommand].trainer
            root = Path(trainer.default_root_dir or "runs")
            if trainer.logger in (None, True):
                version = int(new_version(root).removeprefix("version_"))
                trainer.logger = [
                    {
                        "class_path": f"lightning.pytorch.loggers.{kind}",
                        "init_args": {"save_dir": str(root), "name": "", "version": version},
                    }
                    for kind in ("TensorBoardLogger", "CSVLogger")
                ]

    return Cli(
        PolicyModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=1,
        trainer_defaults={"callbacks": callbacks},
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "exit_on_error": False,
            **({verb: {"exit_on_error": False} for verb in _TRAINER_VERBS} if run else {}),
        },
        args=words,
        run=run,
    )


def _no_chatter(record: Any) -> bool:
    """Keep what a run says of its data, drop Lightning's greetings; named, so that adding it again adds nothing."""
    return not str(record.getMessage()).startswith(("GPU available", "TPU available", "💡 Tip"))


def new_version(root: Path, field: str = "trainer.default_root_dir") -> str:
    """Make the next free folder of a run under `root`, and return its name; `field` is where the user set `root`.

    Raises:
        UserError: `root` cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name.removeprefix("version_")) for path in root.glob("version_*") if path.name[8:].isdigit()]
        name = f"version_{max(taken, default=-1) + 1}"
        (root / name).mkdir()
    except OSError as error:
        raise UserError(
            f"{field} is {str(root)!r}, which cannot be written to ({error.strerror}); name another folder"
        ) from error
    return name


def _check_configs(words: list[str]) -> None:
    """Refuse what the parser would only report at length: files that cannot be read, and those of a later version."""
    import yaml

    for at, word in enumerate(words):
        if word in ("--config", "-c") and at + 1 < len(words):
            path = words[at + 1]
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            continue
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"--config is {path!r}, which cannot be read ({error.strerror}); name a YAML file"
            ) from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--config is {path!r}, which is not YAML in UTF-8 ({reason}); mend the file") from error
        if not isinstance(content, dict):
            raise UserError(f"--config is {path!r}, which holds no fields; write `field: value` lines")
        version = content.get("config_version", CONFIG_VERSION)
        if not isinstance(version, int) or not 1 <= version <= CONFIG_VERSION:
            raise UserError(
                f"config_version in {path} is {version!r}, but this lsemrl ({__version__}) reads up to "
                f"{CONFIG_VERSION}; upgrade lsemrl, or rewrite the file"
            )


def users_mistake(error: BaseException, verb: str = "fit") -> str | None:
    """What to tell the user about `error` of `verb`, in one sentence; None if the fault is ours.

    The parser wraps an error once for every level of the configuration, so the telling one is the innermost: a
    UserError as it stands, or the parser's own complaint behind the path of fields that led there.
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for link in chain:
        if isinstance(link, UserError):
            return " ".join(str(link).split())
    if not isinstance(error, ArgumentError):
        return None
    texts = [str(link) for link in chain]
    path = ".".join(dict.fromkeys(key for text in texts for key in re.findall(r'^Parser key "([^"]+)"', text)))
    complaint = " ".join(re.sub(r'^Parser key "[^"]+":', "", texts[-1]).split())
    complaint = re.sub(r"<class '([\w.]+)'>", r"\1", complaint)
    where = f"{path}: " if path else ""
    remedy = (
        f"lsemrl {verb} --help lists every option"
        if verb in _OWN_VERBS
        else "lsemrl fit --config FILE --print_config lists every field with its type"
    )
    return f"{where}{complaint.rstrip('.')}; {remedy}"


def _generate(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl generate", description=_OWN_VERBS["generate"], exit_on_error=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as runs/grpo/version_0")
    parser.add_argument("--input", type=Path, help="file with a text a line; otherwise standard input")
    parser.add_argument("--output", type=Path, help="file for an output a line; otherwise standard output")
    parser.add_argument("--sample", action="store_true", help="draw as the run drew, rather than greedily")
    parser.add_argument("--seed", type=int, default=1, help="of --sample")
    parser.add_argument("--batch-size", type=int, default=64, help="texts answered at once; one at a prompt")
    options = parser.parse_args(words)
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}; give at least 1")
    from contextlib import ExitStack

    from lsemrl.trained import generate, read_run

    _quiet()
    run = read_run(options.run)
    at_prompt = options.input is None and sys.stdin.isatty()
    with ExitStack() as files:
        try:
            lines = files.enter_context(options.input.open(encoding="utf-8")) if options.input else sys.stdin
            out = files.enter_context(options.output.open("w", encoding="utf-8")) if options.output else sys.stdout
        except OSError as error:
            raise UserError(f"{error.filename!r} cannot be opened ({error.strerror}); name another file") from error
        texts = _asked() if at_prompt else (line.rstrip("\n") for line in lines)
        answers = generate(
            run, texts, greedy=not options.sample, seed=options.seed, batch_size=1 if at_prompt else options.batch_size
        )
        for _, answer in answers:
            print(" ".join(answer.splitlines()), file=out, flush=True)


def _export(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl export", description=_OWN_VERBS["export"], exit_on_error=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as runs/grpo/version_0")
    parser.add_argument("--output", type=Path, required=True, help="new folder, for adapter/ and merged/")
    parser.add_argument("--merged", action="store_true", help="write the merged model too")
    parser.add_argument("--report", type=Path, help="a report.json of lsemrl tax, whose figures go into the card")
    parser.add_argument("--arm", default="rl", help="the arm in the report that this run is (default: rl)")
    options = parser.parse_args(words)
    from lsemrl.evaluation.report import Report
    from lsemrl.export import export
    from lsemrl.trained import read_run

    _quiet()
    figures = (Report.from_json(options.report), options.arm) if options.report else None
    for folder in export(read_run(options.run), options.output, merged=options.merged, figures=figures):
        print(folder)


def _quiet() -> None:
    """Leave out what transformers says to itself."""
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")


def _asked() -> Iterator[str]:
    """What is typed at a prompt, until Ctrl-D or an empty line."""
    print("a text and Enter; Ctrl-D or an empty line ends", file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if not text.strip():
            return
        yield text


def _demo(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl demo", description=_OWN_VERBS["demo"], exit_on_error=False)
    parser.add_argument("--task", choices=("translation", "headline"), default="translation")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for adapters, logs and report")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    from lsemrl.demo import run_demo

    run_demo(options.task, options.output, options.seed)


def _report(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl report", description=_OWN_VERBS["report"], exit_on_error=False)
    parser.add_argument("report", type=Path, help="a report.json")
    options = parser.parse_args(words)
    from lsemrl.evaluation.report import Report, write_report

    print(write_report(Report.from_json(options.report), options.report.parent))


def _typed_parser(verb: str, words: list[str]) -> TypedParser:
    """A parser of typed fields, from YAML files and from the line, for a verb that reads models."""
    from jsonargparse import ArgumentParser as TypedParser
    from jsonargparse import set_parsing_settings

    _check_configs(words)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    _quiet()
    parser = TypedParser(f"lsemrl {verb}", description=_OWN_VERBS[verb], exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file of the fields below; a later one overrides")
    parser.add_argument("--config_version", type=int, default=CONFIG_VERSION, help="format of that file")
    return parser


def _measure(words: list[str]) -> None:
    from lsemrl.evaluation.measure import MeasureSettings, run_measure

    parser = _typed_parser("measure", words)
    parser.add_argument("--output", type=Path, required=True, help="folder for measurement.json")
    parser.add_class_arguments(MeasureSettings)
    config = parser.parse_args(["--print_config=comments" if word == "--print_config" else word for word in words])
    options = parser.instantiate_classes(config)
    folder = options.output.expanduser()
    settings = MeasureSettings(**{name: options[name] for name in MeasureSettings.__dataclass_fields__})
    measured = run_measure(settings, folder)
    for title, scores in (("new task", measured.target), ("general", measured.general)):
        print(f"{measured.label}, {title}: {', '.join(f'{name} {value:.3f}' for name, value in scores.items())}")
    print(folder / "measurement.json")


def _tax(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl tax", description=_OWN_VERBS["tax"], exit_on_error=False)
    found = "searched for measurement.json, general.json, and the judge.json of rl against sft"
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=found)
    parser.add_argument("--output", type=Path, required=True, help="folder for report.json, .md, .html and plots")
    held = "arms that the others are held against beside the base (default: cold_start rl)"
    parser.add_argument("--against", nargs="+", metavar="ARM", help=held)
    way = "arms that are one way of training, weakest first; give it twice or more to compare losses at the same score"
    parser.add_argument("--path", nargs="+", action="append", default=[], metavar="ARM", help=way)
    options = parser.parse_args(words)
    import shlex

    from rich.console import Console

    from lsemrl.evaluation.report import table, write_report
    from lsemrl.evaluation.tax_report import AGAINST, find_general, find_judgement, find_measurements, tax_report

    report = tax_report(
        find_measurements(options.folders),
        command=shlex.join(["lsemrl", "tax", *words]),
        against=options.against or AGAINST,
        judged=find_judgement(options.folders),
        paths=options.path,
        general=find_general(options.folders),
    )
    page = write_report(report, options.output)
    Console().print(table(report))
    print(page)


def _judge(words: list[str]) -> None:
    from jsonargparse import ArgumentParser as TypedParser
    from jsonargparse import set_parsing_settings
    from rich.console import Console
    from rich.progress import Progress

    from lsemrl.evaluation.comparison import table
    from lsemrl.evaluation.judge import Task, run_judge
    from lsemrl.evaluation.judge_client import Endpoint

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = TypedParser("lsemrl judge", description=_OWN_VERBS["judge"], exit_on_error=False)
    parser.add_argument("arms", nargs="*", metavar="NAME=FILE", help="an arm's name and its predictions.jsonl")
    parser.add_argument("--oracle", action="store_true", help="judge by the oracle of the embedded world")
    parser.add_argument("--endpoint", type=Endpoint | None, default=None, help="judge by a chat-completions endpoint")
    parser.add_argument("--task", type=Task, default="translation", help="what the outputs are meant to be")
    parser.add_argument("--language", default="bo", help="the language they are meant to be in")
    parser.add_argument("--prompt", type=Path, help="file with a prompt of your own, holding {source} {first} {second}")
    parser.add_argument("--invalid_retries", type=int, default=2, help="further tries where no verdict can be read")
    parser.add_argument("--output", type=Path, help="folder for the result; by default runs/judge/FIRST_SECOND")
    parser.add_argument("--cache", type=Path, help="folder for replies; by default cache/ in the output folder")
    options = parser.instantiate_classes(parser.parse_args(words))
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("judging", total=None)
        try:
            comparison, path = run_judge(
                **options.as_dict(), progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
        except KeyboardInterrupt:
            print("lsemrl: stopped; replies so far are kept, and the same command goes on from there", file=sys.stderr)
            raise SystemExit(130) from None
    Console().print(table(comparison))
    print(path)


def _general(words: list[str]) -> None:
    from rich.console import Console

    from lsemrl.evaluation.harness import HarnessSettings, run_harness, table
    from lsemrl.modules.policy import PolicySettings

    parser = _typed_parser("general", words)
    parser.add_argument("--policy", type=PolicySettings, default=PolicySettings(), help="the model and its adapter")
    parser.add_argument("--tasks", nargs="+", required=True, help="the harness's tasks or groups, or cmrc2018")
    parser.add_class_arguments(HarnessSettings, skip={"tasks"})
    parser.add_argument("--output", type=Path, default=Path("runs/general"), help="folder for general.json")
    options = parser.instantiate_classes(parser.parse_args(words)).as_dict()
    policy, folder = options.pop("policy"), options.pop("output")
    settings = HarnessSettings(**{name: options[name] for name in HarnessSettings.__dataclass_fields__})
    general = run_harness(policy, settings, folder)
    Console().print(table(general))
    for reason in general.skipped.values():
        print(f"skipped: {reason}")
    print(folder / "general.json")


def _best_of(words: list[str]) -> None:
    from lsemrl.best_of import best_of
    from lsemrl.data.base import TaskData
    from lsemrl.modules.grpo import GRPO

    cli = run_trainer(words, run=False)
    for name, value, wanted in (("model", cli.model, GRPO), ("data", cli.datamodule, TaskData)):
        if not isinstance(value, wanted):
            raise UserError(
                f"{name} is {type(value).__name__}; best-of takes the configuration of a GRPO run on one task"
            )
    best_of(cli.model, cli.datamodule, Path(cli.trainer.default_root_dir))


def _fit_reward(words: list[str]) -> None:
    from transformers.utils.logging import set_verbosity_error

    from lsemrl.data.translation import TranslationData
    from lsemrl.reward_fitting import fit_reward

    parser = _typed_parser("fit-reward", words)
    set_verbosity_error()
    parser.add_function_arguments(fit_reward, skip={"data"})
    unused = {"batch_size", "eval_batch_size", "seed", "num_workers"}
    parser.add_class_arguments(TranslationData, "data", skip=unused)
    config = parser.parse_args(["--print_config=comments" if word == "--print_config" else word for word in words])
    settings = vars(parser.instantiate_classes(config))
    fit_reward(**{name: value for name, value in settings.items() if name not in ("config", "config_version")})
    parser.save(config, Path(config.output).expanduser() / "config.yaml", skip_none=False, overwrite=True)


def _experiment(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl experiment", description=_OWN_VERBS["experiment"], exit_on_error=False)
    parser.add_argument("--config", type=Path, required=True, help="its YAML file, as in configs/experiment/")
    parser.add_argument(
        "--overlay", type=Path, help="YAML file with another world for it, as configs/paper/qwen3_4b.yaml"
    )
    parser.add_argument("--output", type=Path, help="folder of all runs, in place of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and why, and run nothing")
    options = parser.parse_args(words)
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; give at least 1")
    from lsemrl.experiment.plan import read_experiment
    from lsemrl.experiment.run import print_plan, run_experiment

    _check_configs([word for path in (options.config, options.overlay) if path for word in ("--config", str(path))])
    experiment = read_experiment(
        options.config, CONFIGS, overlay=options.overlay, output=options.output, seeds=options.seeds
    )
    if options.dry_run:
        print_plan(experiment)
    elif status := run_experiment(experiment, parallel=options.jobs):
        raise SystemExit(status)


def _build_micro(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl build-micro", description=_OWN_VERBS["build-micro"], exit_on_error=False)
    parser.add_argument("--output", type=Path, required=True, help="folder to write policy/ and encoder/ to")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    import dataclasses
    import logging
    from tempfile import TemporaryDirectory

    from lsemrl.micro import NAME
    from lsemrl.micro.build import build

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(options.output, seed=options.seed)
    with TemporaryDirectory() as folder:
        cold_start = ["fit", "--config", str(CONFIGS / "sft.yaml"), "--data.splits.part=cold_start"]
        policy = [f"--model.policy.model={options.output / 'policy'}", "--model.metrics.names=[chrf]"]
        length = ["--trainer.max_steps=200", "--trainer.max_epochs=-1", "--trainer.callbacks=null"]
        module = run_trainer([*cold_start, *policy, *length, f"--trainer.default_root_dir={folder}"]).model
        module.policy.settings = dataclasses.replace(module.policy.settings, model=NAME)  # its name once installed
        module.policy.save(options.output / "cold_start")
        (options.output / "cold_start" / "README.md").unlink(missing_ok=True)  # peft's empty model card
