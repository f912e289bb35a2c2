"""What words and files say of a run, looked at before Lightning loads: that takes seconds, and a mistake does not wait.

The parser is jsonargparse, as it is afterwards, and so are the types; only the classes that stand on Lightning are not
imported: which parameters they take is read from their source. So nothing is refused here that would not be refused
later. What needs more is left for then: rewards, callbacks and policies of users' own, settings that contradict others.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from lsemrl import micro
from lsemrl.as_typed import NotFields
from lsemrl.cli.words import spelled_out
from lsemrl.config_files import prepare_configs, read_config
from lsemrl.errors import UserError
from lsemrl.files import write_text
from lsemrl.finite import check_all_finite, check_all_seeds
from lsemrl.model_names import check_encoder

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SFT, GRPO = "lsemrl.modules.sft.SFT", "lsemrl.modules.grpo.GRPO"
POLICIES = (SFT, GRPO)
"""What `model.class_path` may be, but for a user's own."""
_TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
_CHECKPOINTS = ("lsemrl.modules.checkpoints", "Checkpoints")


def first_look(words: Sequence[str], policies: Sequence[str] = POLICIES) -> None:
    """Refuse fields that nothing takes, values that settings refuse, and rows that are not there.

    Args:
        words: Those of a verb that trains, behind the verb.
        policies: Which of `POLICIES` the verb takes.

    Raises:
        ArgumentError: A field is unknown, or its value of another type.
        UserError: A setting that cannot be, or a file that is not there.
    """
    spelled = spelled_out(prepare_configs(list(words)), {})
    pairs = [word.removeprefix("--").partition("=") for word in spelled]
    alone = [word for word, (_, equals, _) in zip(spelled, pairs, strict=True) if not equals]
    asks = any(name.split(".")[-1] in ("help", "print_config") for name, _, _ in pairs)
    if asks or not all(word.startswith("--") for word in alone) or not _source(_TRAINER[0]).is_file():
        return
    named = _policies((name, value) for name, _, value in pairs)
    for policy in named - {*policies}:
        if policy.startswith("lsemrl."):
            either = " or ".join(policies)
            raise UserError(f"model.class_path is {policy!r}; give {either}, or a class of your own that extends one")
    policy = "".join(named & {*POLICIES}) if len(named) == 1 else ""
    parser = _parser(policy)
    fields = ((name, value) for name, equals, value in pairs if equals)
    with TemporaryDirectory() as rewritten:
        known = _known(fields, bool(policy), Path(rewritten))
        config = parser.parse_args([*(f"--{name}={value}" for name, value in known), *alone])
    for name, given in (("model", named), ("data", config.get("data"))):
        if not given:
            raise UserError(f"{name} is not given; put a whole configuration first, such as --config grpo.yaml")
    check_all_seeds(config.as_dict())
    check_all_finite(config.as_dict())
    if policy:
        from lsemrl.modules.sampling import check_tokens

        settings = config.model.init_args
        for part in (settings.pop("rewards", None) or {}).values():  # to make one would load it
            encoder = part.get("init_args", {}).get("encoder", micro.NAME)
            ours = part["class_path"].startswith("lsemrl.")  # of others' it may be anything
            if ours and encoder != micro.NAME:
                check_encoder(encoder)
        check_tokens(settings.get("max_new_tokens"), settings.micro_batch_tokens)
    made = parser.instantiate_classes(config)
    made.data.check_files()
    if not policy:
        return
    settings = made.model.init_args
    for named in (settings.policy, settings.anchor):
        if named is not None:
            named.check_files()
    if policy == GRPO:
        from lsemrl.modules.grpo_settings import check_grpo, check_windows
        from lsemrl.modules.sampling import Sampling

        given = {name: value for name, value in settings.items() if value is not None}
        check_grpo(**{name: given[name] for name in signature(check_grpo).parameters if name in given})
        sampling = given.get("sampling", Sampling())
        check_windows(settings.optimizer_batch_size, made.data.batch_size, sampling.num_generations)


def _parser(policy: str) -> ArgumentParser:
    """A parser of the fields of a run.

    Args:
        policy: One of `POLICIES`; "" for a user's own, whose fields are left for later.
    """
    from jsonargparse import ArgumentParser

    from lsemrl.data.base import Data

    spare_what_checkers_import()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    trainers = (f"trainer.{name}" for name in _parameters(*_TRAINER))
    verbs = (name for verb in ("fit", "validate", "test", "predict") for name in _parameters(*_TRAINER, verb))
    for name in {"config_version", "seed_everything", *trainers, *verbs} - {"model"}:
        parser.add_argument(f"--{name}", type=_unread)
    hints = {f"checkpoints.{name}": hint for name, hint in _hints(*_CHECKPOINTS).items()}
    if policy:
        module, _, kind = policy.rpartition(".")
        hints["model.class_path"] = str
        hints |= {f"model.init_args.{name}": hint for name, hint in _hints(module, kind).items()}
    else:
        hints["model"] = _unread
    for name, hint in hints.items():
        parser.add_argument(f"--{name}", type=hint)
    parser.add_subclass_arguments(Data, "data")
    return parser


@functools.cache  # once a process
def spare_what_checkers_import() -> None:
    """jsonargparse imports what modules import for type checkers alone, sentence_transformers too. No setting of ours
    is of such a type, and it has no option for this."""
    from jsonargparse._postponed_annotations import TypeCheckingVisitor

    visit = TypeCheckingVisitor.visit_If

    def visit_others(self: Any, node: ast.If) -> None:
        if not self.module.startswith("lsemrl."):
            visit(self, node)

    setattr(TypeCheckingVisitor, "visit_If", visit_others)  # noqa: B010


def _unread(value: Any) -> Any:
    """The type of what is left for later; typing.Any would import the classes that it names."""
    return value


def _policies(pairs: Iterable[tuple[str, str]]) -> set[str]:
    """The classes that files and words name since one last said null."""
    named: set[str] = set()
    for name, value in pairs:
        if name == "config":
            model = _whole_names(read_config(value)).get("model", {})
            given = "null" if model is None else model.get("class_path")
        else:
            given = value if name in ("model", "model.class_path") else None
        if given == "null":
            named.clear()
        elif given:
            named.add(str(given))
    return named


def _known(pairs: Iterable[tuple[str, str]], ours: bool, rewritten: Path) -> Iterator[tuple[str, str]]:
    """The words, by the names that the parser here has for them; without those that only the parser proper can read.

    Args:
        pairs: Names and values.
        ours: Whether the policy is one of `POLICIES`.
        rewritten: A folder for files whose names are not those that the parser here has.
    """
    for name, value in pairs:
        group, _, field = name.partition(".")
        if group == "trainer":
            if field:
                yield f"trainer.{field.partition('.')[0].rstrip('+')}", value
        elif group == "model":
            if ours:
                field = field.removeprefix("init_args.")
                yield (f"model.init_args.{field}" if field not in ("", "class_path") else "model.class_path"), value
        elif name == "config":
            content = read_config(value)
            if (whole := _whole_names(content)) != content:
                value = str(rewritten / f"{len([*rewritten.iterdir()])}.yaml")
                write_text(Path(value), yaml.safe_dump(whole, allow_unicode=True))
            yield name, value
        elif name != "checkpoints":  # a file of them
            yield name, value


def _whole_names(content: dict[str, Any]) -> dict[str, Any]:
    """A file's content, in which a class may stand alone, and its fields beside class_path or below init_args."""
    model = content.get("model")
    if model is None:
        return content
    if isinstance(model, str):
        return {**content, "model": {"class_path": model}}
    if not isinstance(model, dict):
        raise NotFields("model", model, object)
    named = {name: model[name] for name in ("class_path", "init_args") if name in model}
    beside = {name: value for name, value in model.items() if name not in named}
    inside = named.get("init_args", {})
    if not beside:
        return content
    return {**content, "model": {**named, "init_args": {**inside, **beside}}}


def _hints(module: str, kind: str) -> dict[str, Any]:
    """The types of the parameters of a class, with what they are called by imported from where it imports it."""
    parameters = _parameters(module, kind)
    called = {node.id for hint in parameters.values() for node in ast.walk(hint) if isinstance(node, ast.Name)}
    scope = {
        alias.name: getattr(import_module(node.module), alias.name)
        for node in _parsed(module).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.name in called
    }
    written = {name: ast.unparse(hint) for name, hint in parameters.items()}
    return get_type_hints(type(kind, (), {"__annotations__": written}), scope)


def _parameters(module: str, kind: str, method: str = "__init__") -> dict[str, ast.expr]:
    """Those of a method of a class, with their annotations, from its source."""
    found = next(node for node in _parsed(module).body if isinstance(node, ast.ClassDef) and node.name == kind)
    function = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == method)
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return {each.arg: each.annotation for each in arguments if each.annotation is not None}


@functools.cache  # Lightning's is long, and asked for once a verb
def _parsed(module: str) -> ast.Module:
    return ast.parse(_source(module).read_text(encoding="utf-8"))


def _source(module: str) -> Path:
    """The file of a module, whose packages are not imported."""
    top, *parts = module.split(".")
    spec = find_spec(top)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).joinpath(*parts).with_suffix(".py")
