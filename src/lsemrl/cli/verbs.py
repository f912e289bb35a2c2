"""The verbs: each is a name, a line and a function, whose parameters are its settings and its docstring their help."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from lsemrl.cli.first_look import GRPO, POLICIES, first_look, spare_what_checkers_import
from lsemrl.cli.words import item_of, spelled_out
from lsemrl.commands.trainer import TRAINER_VERBS
from lsemrl.config_files import CONFIG_VERSION, prepare_configs
from lsemrl.finite import check_all_seeds
from lsemrl.reading import user_path

_OF_LIGHTNING = ("fit", "validate", "test", "predict")
VERBS = {
    "init": "look into rows of your own, and write a project for them: cold start, RL, measure",
    "check": "look at rows before training: leaks, copies, languages, tokens, what it would cost",
    **{verb: TRAINER_VERBS[verb] for verb in _OF_LIGHTNING},
    "rehearse": "have the base write text by itself, to hold a policy to what it knew",
    "generate": "answer texts with a run or a model: a file, standard input, or at a prompt",
    "chat": "answer and score what is typed, each line by itself, the base beside it if asked",
    "export": "a finished run as folders for plain peft and transformers, with a model card",
    "demo": "the main job on the embedded world: cold start, RL, strong SFT, evaluation, report",
    "report": "render a report.json again as Markdown, HTML and plots",
    "measure": "measure one policy against the original base: gain, tax, divergence, every row",
    "curve": "a finished adapter at several strengths, and the best one for what may be lost",
    "tax": "set measured arms side by side, over seeds: tables with intervals, plots, pages",
    "judge": "compare two arms' predictions row by row, by a language model or by the oracle",
    "general": "general ability before and after training, by lm-evaluation-harness",
    "best-of": TRAINER_VERBS["best-of"],
    "fit-reward": "adapt a reward encoder to parallel pairs, measure it, and derive tau",
    "fit-language": "tell a language from those in its script, by texts of both",
    "experiment": "run the stages of an experiment for every seed, where needed",
    "build-micro": "rebuild the embedded policy, encoder and cold start from a seed",
}
"""What each is for. A verb is the function of its name in the module of its name in `lsemrl.commands`; Lightning's are
`trainer.run_trainer`."""


def run_verb(verb: str, words: list[str]) -> None:
    """Import a verb's function, and call it with what its words say.

    A parameter before the star is given by its place; the fields of one called `settings` stand beside the others;
    `typed` is the command itself. What takes the configuration of a run is given the words, for Lightning to read.

    Args:
        verb: One of `VERBS`.
        words: Those behind it.

    Raises:
        ArgumentError: They say no such thing.
        UserError: Whatever the function refuses.
    """
    own = verb.replace("-", "_")
    module, name = ("trainer", "run_trainer") if verb in _OF_LIGHTNING else (own, own)
    function = getattr(import_module(f"lsemrl.commands.{module}"), name)
    if verb in TRAINER_VERBS:
        first_look(words, (GRPO,) if verb == "best-of" else POLICIES)
        function([verb, *words])
        return
    from jsonargparse import ArgumentParser

    parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    spare_what_checkers_import()
    typed = ["lsemrl", verb, *words]
    words = prepare_configs(words)
    parser = ArgumentParser(f"lsemrl {verb}", description=VERBS[verb], exit_on_error=False)
    if "config" not in parameters:
        parser.add_argument("--config", action="config", help="a YAML file of the fields below; a later one overrides")
        parser.add_argument("--config_version", type=int, default=CONFIG_VERSION, help="format of that file")
    parser.add_function_arguments(function, as_positional=True, skip={"settings", "typed"})
    settings = hints.pop("settings", None)
    if settings:
        parser.add_class_arguments(settings)
        hints |= get_type_hints(settings)
    placed = next((one.name for one in parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD), "")
    for action in parser._actions:
        if action.dest == placed:  # jsonargparse would show a list as JSON or a file of it
            action.metavar = placed.upper() + (" ..." if item_of(hints[placed]) else "")
        elif action.dest.endswith("_"):  # none of Python's names, and shown as it is typed
            action.option_strings, action.metavar = [f"--{action.dest[:-1]}"], action.dest[:-1].upper()
    config = parser.parse_args(spelled_out(words, hints, placed))
    check_all_seeds(config.as_dict())
    found = parser.instantiate_classes(config)
    if settings:
        found["settings"] = settings(**{field.name: found[field.name] for field in fields(settings)})
    function(**{name: typed if name == "typed" else _at_home(found[name]) for name in parameters})


def _at_home(value: Any) -> Any:
    """Paths with the user's home in them."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return user_path(value) if isinstance(value, Path) else value
