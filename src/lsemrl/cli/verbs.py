"""The project's own verbs: each reads its words and hands them to the room that does the work.

Heavy imports are inside, so that `lsemrl --help` waits for none of them.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lsemrl.as_typed import take_text_as_typed
from lsemrl.cli.trainer import run_trainer
from lsemrl.config_files import CONFIG_VERSION, CONFIGS, prepare_configs
from lsemrl.errors import UserError
from lsemrl.files import replace_folder, replacing, try_folder
from lsemrl.finite import check_all_seeds, check_seed
from lsemrl.foreign import visible
from lsemrl.reading import Unreadable, fault_of, lines, read_lines

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser as TypedParser

OWN_VERBS = {
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
"""What each is for, in a line."""


def _generate(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl generate", description=OWN_VERBS["generate"], exit_on_error=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as runs/grpo/version_0")
    parser.add_argument("--input", type=Path, help="file with a text a line; otherwise standard input")
    parser.add_argument("--output", type=Path, help="file for an output a line; otherwise standard output")
    parser.add_argument("--sample", action="store_true", help="draw as the run drew, rather than greedily")
    parser.add_argument("--seed", type=int, default=1, help="of --sample")
    parser.add_argument("--batch-size", type=int, default=64, help="texts answered at once; one at a prompt")
    options = parser.parse_args(words)
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}; give at least 1")
    check_seed(options.seed, "--seed")
    if sys.stdout is None and not options.output:
        raise UserError("standard output is closed and --output is not given; name a file by --output")
    from contextlib import ExitStack

    from lsemrl.commands.generate import generate, read_run

    _quiet()
    run = read_run(options.run)
    at_prompt = options.input is None and sys.stdin is not None and sys.stdin.isatty()
    texts = _asked() if at_prompt else _texts(options.input)
    with ExitStack() as files:
        out = files.enter_context(replacing(options.output, "--output")) if options.output else sys.stdout
        answers = generate(
            run, texts, greedy=not options.sample, seed=options.seed, batch_size=1 if at_prompt else options.batch_size
        )
        for _, answer in answers:
            line = " ".join(answer.splitlines())
            print(visible(line) if out.isatty() else line, file=out, flush=True)


def _export(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl export", description=OWN_VERBS["export"], exit_on_error=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as runs/grpo/version_0")
    parser.add_argument("--output", type=Path, required=True, help="new folder, for adapter/ and merged/")
    parser.add_argument("--merged", action="store_true", help="write the merged model too")
    parser.add_argument("--report", type=Path, help="a report.json of lsemrl tax, whose figures go into the card")
    parser.add_argument("--arm", default="rl", help="the arm in the report that this run is (default: rl)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload to a hub; the merged model as OWNER/NAME-merged")
    parser.add_argument("--private", action="store_true", help="of --push: new repositories are private")
    parser.add_argument("--dry-run", action="store_true", help="of --push: only say what would be sent")
    options = parser.parse_args(words)
    from lsemrl.commands.export import export, push
    from lsemrl.commands.generate import read_run
    from lsemrl.report.records import Report

    _quiet()
    figures = (Report.from_json(options.report), options.arm) if options.report else None
    run = read_run(options.run)
    folders = export(run, options.output, merged=options.merged, figures=figures)
    for folder in folders:
        print(folder)
    if options.push:
        for line in push(run, folders, options.push, private=options.private, dry_run=options.dry_run):
            print(line)


def _demo(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl demo", description=OWN_VERBS["demo"], exit_on_error=False)
    parser.add_argument("--task", choices=("translation", "headline"), default="translation")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for adapters, logs and report")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    check_seed(options.seed, "--seed")
    from lsemrl.commands.demo import run_demo

    run_demo(options.task, options.output, options.seed, run_trainer)


def _report(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl report", description=OWN_VERBS["report"], exit_on_error=False)
    parser.add_argument("report", type=Path, help="a report.json")
    options = parser.parse_args(words)
    from lsemrl.report.records import Report
    from lsemrl.report.write import write_pages

    print(write_pages(Report.from_json(options.report), options.report.parent))


def _measure(words: list[str]) -> None:
    from lsemrl.evaluation.measure import MeasureSettings, run_measure

    parser = _typed_parser("measure", words)
    parser.add_argument("--output", type=Path, required=True, help="folder for measurement.json")
    parser.add_class_arguments(MeasureSettings)
    config = parser.parse_args(["--print_config=comments" if word == "--print_config" else word for word in words])
    check_all_seeds(config.as_dict())
    options = parser.instantiate_classes(config)
    folder = options.output.expanduser()
    settings = MeasureSettings(**{name: options[name] for name in MeasureSettings.__dataclass_fields__})
    measured = run_measure(settings, folder)
    for title, scores in (("new task", measured.target), ("general", measured.general)):
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print(visible(f"{measured.label}, {title}: {told}"))
    print(folder / "measurement.json")


def _tax(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl tax", description=OWN_VERBS["tax"], exit_on_error=False)
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

    from lsemrl.report.folders import find_general, find_judgement, find_measurements
    from lsemrl.report.tax_report import AGAINST, tax_report
    from lsemrl.report.write import table, write_report

    report = tax_report(
        find_measurements(options.folders),
        command=shlex.join(["lsemrl", "tax", *words]),
        against=options.against or AGAINST,
        judged=find_judgement(options.folders),
        paths=options.path,
        general=find_general(options.folders),
    )
    page = write_report(report, options.output, "--output")
    Console().print(table(report))
    print(page)


def _judge(words: list[str]) -> None:
    from jsonargparse import ArgumentParser as TypedParser
    from jsonargparse import set_parsing_settings
    from rich.console import Console
    from rich.progress import Progress

    from lsemrl.judging.comparison import table
    from lsemrl.judging.endpoint import Endpoint
    from lsemrl.judging.judge import Task, run_judge

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    take_text_as_typed()
    parser = TypedParser("lsemrl judge", description=OWN_VERBS["judge"], exit_on_error=False)
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

    from lsemrl.evaluation.harness import run_harness
    from lsemrl.evaluation.harness_library import HarnessSettings
    from lsemrl.evaluation.harness_scores import table
    from lsemrl.modules.policy_settings import PolicySettings

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
        print(visible(f"skipped: {reason}"))
    print(folder / "general.json")


def _best_of(words: list[str]) -> None:
    from lsemrl.commands.best_of import best_of
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

    from lsemrl.commands.fit_reward import fit_reward
    from lsemrl.data.translation import TranslationData

    parser = _typed_parser("fit-reward", words)
    set_verbosity_error()
    parser.add_function_arguments(fit_reward, skip={"data", "config"})
    unused = {"batch_size", "eval_batch_size", "seed", "num_workers"}
    parser.add_class_arguments(TranslationData, "data", skip=unused)
    config = parser.parse_args(["--print_config=comments" if word == "--print_config" else word for word in words])
    check_all_seeds(config.as_dict())
    settings = vars(parser.instantiate_classes(config))
    settings["config"] = parser.dump(config, skip_none=False)
    fit_reward(**{name: value for name, value in settings.items() if name != "config_version"})


def _experiment(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl experiment", description=OWN_VERBS["experiment"], exit_on_error=False)
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
    for seed in options.seeds or ():
        check_seed(seed, "--seeds")
    from lsemrl.experiment.dry_run import print_plan
    from lsemrl.experiment.read import read_experiment
    from lsemrl.experiment.run import run_experiment

    experiment = read_experiment(
        options.config, CONFIGS, overlay=options.overlay, output=options.output, seeds=options.seeds
    )
    if options.dry_run:
        print_plan(experiment)
    elif status := run_experiment(experiment, parallel=options.jobs):
        raise SystemExit(status)


def _build_micro(words: list[str]) -> None:
    parser = ArgumentParser("lsemrl build-micro", description=OWN_VERBS["build-micro"], exit_on_error=False)
    parser.add_argument("--output", type=Path, required=True, help="folder to write policy/ and encoder/ to")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    check_seed(options.seed, "--seed")
    import dataclasses
    import logging
    from tempfile import TemporaryDirectory

    from lsemrl.micro import NAME
    from lsemrl.micro.build import build

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try_folder(options.output, "--output")
    build(options.output, seed=options.seed)
    with TemporaryDirectory() as folder:
        cold_start = ["fit", "--config", str(CONFIGS / "sft.yaml"), "--data.splits.part=cold_start"]
        policy = [f"--model.policy.model={options.output / 'policy'}", "--model.metrics.names=[chrf]"]
        length = ["--trainer.max_steps=200", "--trainer.max_epochs=-1", "--trainer.callbacks=null"]
        module = run_trainer([*cold_start, *policy, *length, f"--trainer.default_root_dir={folder}"]).model
        module.policy.settings = dataclasses.replace(module.policy.settings, model=NAME)  # its name once installed

        def fill(part: Path) -> None:
            module.policy.save(part)
            (part / "README.md").unlink(missing_ok=True)  # peft's empty model card

        replace_folder(options.output / "cold_start", fill)


def _typed_parser(verb: str, words: list[str]) -> TypedParser:
    """A parser of typed fields, from YAML files and from the line, for a verb that reads models."""
    from jsonargparse import ArgumentParser as TypedParser
    from jsonargparse import set_parsing_settings

    prepare_configs(words)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    take_text_as_typed()
    _quiet()
    parser = TypedParser(f"lsemrl {verb}", description=OWN_VERBS[verb], exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file of the fields below; a later one overrides")
    parser.add_argument("--config_version", type=int, default=CONFIG_VERSION, help="format of that file")
    return parser


def _quiet() -> None:
    """Leave out what transformers says to itself."""
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")


def _texts(path: Path | None) -> Iterable[str]:
    """The lines of a file, looked at before a model is read, or those of standard input as they come."""
    try:
        if path is not None:
            return list(_whole_lines(read_lines(path), str(path)))
    except Unreadable as reason:
        raise UserError(f"'{path}' cannot be opened ({reason}); name another file") from None
    if sys.stdin is None:
        raise UserError("standard input is closed; give --input")
    # A notebook's standard input has text only.
    typed = getattr(sys.stdin, "buffer", None) or (line.encode("utf-8", "surrogateescape") for line in sys.stdin)
    return _whole_lines(lines(typed), "standard input")


def _whole_lines(texts: Iterable[str], name: str) -> Iterator[str]:
    try:
        for number, text in enumerate(texts, start=1):
            if fault := fault_of(text):
                raise UserError(f"{name}:{number}: {fault}; mend the line")
            yield text
    except Unreadable as reason:
        raise UserError(f"{name} cannot be read ({reason})") from None


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


RUN: dict[str, Callable[[list[str]], None]] = {
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
"""What each of them does with its words."""
