"""The verbs: each is a name, a line and a function, whose parameters are its settings and its docstring their help.

A function is imported when its verb is asked for, so that `lsemrl --help` waits for none of them.
"""

from __future__ import annotations

import inspect
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lsemrl.as_typed import kinds
from lsemrl.config_files import CONFIG_VERSION, prepare_configs
from lsemrl.finite import check_all_seeds
from lsemrl.reading import user_path


@dataclass(frozen=True)
class Verb:
    """One thing to do.

    Attributes:
        name: As it is typed.
        line: What it is for.
        function: Where its function is, within lsemrl.commands. A parameter before the star is given by its place; the
            fields of one called `settings` stand beside the others. One of `words` has them read by Lightning.
    """

    name: str
    line: str
    function: str


VERBS = {
    verb.name: verb
    for verb in (
        Verb("fit", "train a policy: SFT or GRPO, as the configuration says", "trainer.run_trainer"),
        Verb("validate", "score a policy on the validation rows", "trainer.run_trainer"),
        Verb("test", "score a policy on the test rows", "trainer.run_trainer"),
        Verb("predict", "write a policy's outputs for the test rows", "trainer.run_trainer"),
        Verb(
            "generate", "answer texts with a finished run: a file, standard input, or at a prompt", "generate.generate"
        ),
        Verb(
            "export",
            "a finished run as folders for plain peft and transformers, with a model card",
            "export.export",
        ),
        Verb("demo", "the main job on the embedded world: cold start, RL, strong SFT, evaluation, report", "demo.demo"),
        Verb("report", "render a report.json again as Markdown, HTML and plots", "report.report"),
        Verb(
            "measure",
            "measure one policy against the original base: gain, tax, divergence, every row",
            "measure.measure",
        ),
        Verb("tax", "set measured arms side by side, over seeds: tables with intervals, plots, pages", "tax.tax"),
        Verb("judge", "compare two arms' predictions row by row, by a language model or by the oracle", "judge.judge"),
        Verb("general", "general ability before and after training, by lm-evaluation-harness", "general.general"),
        Verb(
            "best-of",
            "draw a group for every training row of a GRPO run and keep the best as rows for SFT (self-SFT)",
            "best_of.best_of",
        ),
        Verb(
            "fit-reward",
            "adapt a reward encoder to parallel pairs, measure it, and derive tau from a cold start",
            "fit_reward.fit_reward",
        ),
        Verb(
            "experiment",
            "run the stages of an experiment for every seed, each in a process of its own, and only where needed",
            "experiment.experiment",
        ),
        Verb(
            "build-micro",
            "rebuild the embedded policy, encoder and cold start from a seed",
            "build_micro.build_micro",
        ),
    )
}


def run_verb(verb: Verb, words: list[str]) -> None:
    """Call a verb's function with what its words say.

    Raises:
        ArgumentError: They say no such thing.
        UserError: Whatever the function refuses.
    """
    module, _, name = verb.function.partition(".")
    function = getattr(import_module(f"lsemrl.commands.{module}"), name)
    parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    if "words" in parameters:
        function([verb.name, *words])
        return
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(f"lsemrl {verb.name}", description=verb.line, exit_on_error=False)
    words = prepare_configs(words)
    if "config" not in parameters:
        parser.add_argument("--config", action="config", help="a YAML file of the fields below; a later one overrides")
        parser.add_argument("--config_version", type=int, default=CONFIG_VERSION, help="format of that file")
    parser.add_function_arguments(function, as_positional=True, skip={"settings"})
    settings = hints.pop("settings", None)
    if settings:
        parser.add_class_arguments(settings)
        hints |= get_type_hints(settings)
    placed = next((one.name for one in parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD), "")
    for action in parser._actions:
        if action.dest == placed:  # jsonargparse would show a list as JSON or a file of it
            action.metavar = placed.upper() + (" ..." if _item(hints[placed]) else "")
    config = parser.parse_args(spelled_out(words, hints, placed))
    check_all_seeds(config.as_dict())
    found = parser.instantiate_classes(config)
    if settings:
        found["settings"] = settings(**{field.name: found[field.name] for field in fields(settings)})
    function(**{name: _at_home(found[name]) for name in parameters})


def spelled_out(words: Sequence[str], hints: Mapping[str, Any], placed: str = "") -> list[str]:
    """Words as jsonargparse reads them, which wants one value for an option.

    `--batch-size 8` has an underscore, `--sample` is true, `--seeds 1 2` is a list, `--path a b --path c d` a list of
    lists, and words by their place are one list, where a list is meant.

    Args:
        words: As they were typed.
        hints: The types of the options, by name; of others, nothing but the value is taken.
        placed: The one among them that is given by its place.
    """
    spelled: list[str] = []
    lists: dict[str, list[Any]] = {}
    rest = deque(words)
    while rest:
        word = rest.popleft()
        by_name = word.startswith("--")
        name, equals, value = word[2:].partition("=") if by_name else (placed, "=", word)
        name = under if (under := name.replace("-", "_")) in hints else name
        hint, item = hints.get(name), _item(hints.get(name))
        values = [value] if equals else []
        flag = hint is bool or name in ("help", "print_config")
        while rest and not rest[0].startswith("--") and not equals and not flag and (item or not values):
            values.append(rest.popleft())
        if item and not (by_name and len(values) == 1 and values[0].startswith("[")):  # such a one is YAML already
            lists.setdefault(name, []).extend([values] if get_origin(item) is list else values)
        elif by_name:
            spelled.append("=".join([f"--{name}", *(values or ["true"] * (hint is bool))]))
        else:
            spelled.append(word)
    return spelled + [
        json.dumps(found) if name == placed else f"--{name}={json.dumps(found)}" for name, found in lists.items()
    ]


def _item(hint: Any) -> Any:
    """What a list holds; None for what is no list."""
    return next((get_args(kind)[0] for kind in kinds(hint) if get_origin(kind) is list), None)


def _at_home(value: Any) -> Any:
    """Paths with the user's home in them."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return user_path(value) if isinstance(value, Path) else value
