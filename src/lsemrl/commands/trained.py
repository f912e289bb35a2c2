"""A finished run, an adapter or a model, taken up to be used: its policy, how it was asked, and how it drew.

Of a run everything is read from its own folder: config.yaml, and adapter/ (after full fine-tuning, the model in there).
It may be somebody else's, so that its config.yaml is data: it names classes of lsemrl alone, none of which is looked
for on a path, and nothing that is read leads out of the folder. Loggers and callbacks are not read at all, and rewards
by `scored` only. An adapter or a model by itself is no code either, and says nothing of a task.
"""

from __future__ import annotations

import dataclasses
import os
from argparse import ArgumentError
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from jsonargparse import ArgumentParser

from lsemrl import micro
from lsemrl.commands.named import Model, adapter_in, base_was_folder, run_of
from lsemrl.data.base import TaskData
from lsemrl.data.choice import ChoiceData
from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.headline import HeadlineData
from lsemrl.data.instruction import InstructionData
from lsemrl.data.translation import TranslationData
from lsemrl.errors import reason_of
from lsemrl.modules.base_model import read_config
from lsemrl.modules.policy_settings import ADAPTER_CONFIG, PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.runs import ADAPTER, CONFIG, METRICS, check_finished
from lsemrl.types import UserError

_DATA: dict[str, type[TaskData]] = {
    kind.__name__: kind for kind in (ComprehensionData, HeadlineData, InstructionData, TranslationData, ChoiceData)
}
"""What `data` of a run may be."""
_LONGEST = 256
"""New tokens of an answer where no run says how many."""
_OF_ADAPTERS = ["*.json", "*.jinja", "*.model", "*.txt", "adapter_model.safetensors"]
"""Files of a hub's adapter, and little of a model."""
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, ArgumentError, yaml.YAMLError)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run, or a model without one, which is asked in nothing but what is typed.

    Attributes:
        folder: Its own, with config.yaml.
        config: All of config.yaml; empty without a run.
        policy: The trained policy's settings.
        data: What it was trained on; not read yet.
        sampling: How its completions were drawn; as `Sampling` has it, where it drew none.
        base: What full fine-tuning started from; None where the base is the policy without its adapter.
        beside: What a mixture has beside `data`: the names of other rows, and their share.
    """

    folder: Path
    config: dict[str, Any]
    policy: PolicySettings
    data: TaskData
    sampling: Sampling
    base: PolicySettings | None = None
    beside: tuple[tuple[str, float], ...] = ()


def take_up(found: Path | Model, max_new_tokens: int | None = None, adapter_scale: float = 1.0) -> Trained:
    """Read what answers: a run's configuration, or what a model says of itself.

    Args:
        found: See `named.find`.
        max_new_tokens: Longest answer; None leaves it at the run's own.
        adapter_scale: How much of what was trained to take, see `PolicySettings`.

    Raises:
        UserError: See `read_run`; or the model is none, or holds links to elsewhere.
    """
    run = read_run(found) if isinstance(found, Path) else _without_task(found)
    if adapter_scale != 1:
        if run.policy.adapter is None:
            raise UserError(f"--adapter-scale is {adapter_scale}, but RUN has no adapter to scale; leave it out")
        run = dataclasses.replace(run, policy=dataclasses.replace(run.policy, adapter_scale=adapter_scale))
    if max_new_tokens is None:
        return run
    return dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, max_new_tokens=max_new_tokens))


def read_run(found: Path) -> Trained:
    """Read a run's configuration.

    Args:
        found: The run, or weights in its folder, which are taken in place of what it left last.

    Raises:
        UserError: It is no run's folder, or one whose configuration this version does not understand or does not trust.
    """
    run = run_of(found)
    if run is None:
        check_finished(found)
    folder, adapter = (run, found) if run else (found, found / ADAPTER)
    path = folder / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model, data = config["model"]["init_args"], config["data"]
        mixed = data["init_args"] if "main" in data["init_args"] else None
        data, beside = (mixed["main"], _beside(mixed)) if mixed else (data, ())  # what was to be learned
        drew_none = {"num_generations": 1, "max_new_tokens": model.get("max_new_tokens")}
        kind, fields = _data_class(data["class_path"]), data.get("init_args", {})
        read = {"policy": model["policy"], "sampling": model.get("sampling", drew_none), "data": fields}
        if isinstance(model["policy"], dict) and model["policy"].get("trust_remote_code"):
            raise ValueError(
                "policy.trust_remote_code is true, which is for its owner to say: lsemrl predict --config writes the "
                "outputs, and runs the model's code"
            )
        for name, of in (("policy", PolicySettings), ("sampling", Sampling), ("data", kind.__init__)):
            _check_settings(name, read[name], of)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--policy", type=PolicySettings)
        parser.add_argument("--sampling", type=Sampling)
        parser.add_class_arguments(kind, "data")
        asked = parser.instantiate_classes(parser.parse_object(read))
    except UNREADABLE as error:
        reason = reason_of(error, 300)
        raise UserError(f"RUN is {str(folder)!r}, whose config.yaml cannot be read ({reason}); restore it") from error
    check_links(folder, [path, adapter, folder / METRICS, Path(asked.policy.model)])
    if not os.path.exists(asked.policy.model) and base_was_folder(adapter):
        raise UserError(
            f"RUN is {str(folder)!r}, whose policy.model {asked.policy.model!r} was a folder where it was trained, and "
            "is none here; run this from there"
        )
    full = asked.policy.train == "full"
    where: dict[str, Any] = {"model": str(adapter), "adapter": None} if full else {"adapter": str(adapter)}
    as_it_is: Any = {"reference": "none", "ref_model_sync_steps": None}
    where |= {"adapter_scale": 1.0, **as_it_is}  # what it began from may have been scaled; what it left is whole
    return Trained(
        folder=folder,
        config=config,
        policy=dataclasses.replace(asked.policy, **where),
        data=asked.data,
        sampling=asked.sampling,
        base=dataclasses.replace(asked.policy, **as_it_is) if full else None,
        beside=beside,
    )


def _beside(mixed: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """The other rows of a mixture, as its configuration names them: by their file, or else by their class."""
    named = []
    others = [{"data": mixed["replay"], "share": mixed["replay_share"]}, *(mixed.get("more") or ())]
    for other in others:
        data = other["data"]
        source = (data.get("init_args") or {}).get("source")
        path = source.get("path") if isinstance(source, dict) else None
        named.append((str(path or data["class_path"]), float(other["share"])))
    return tuple(named)


def _without_task(model: Model) -> Trained:
    """A model whose instruction is the text itself."""
    if model.folder:
        check_links(model.folder, model.folder.iterdir())
    elif model.name != micro.NAME:
        model = _adapter_of_hub(model)
    stored = read_config(str(micro.POLICY) if model.name == micro.NAME else model.name, trust=False).dtype
    asked: dict[str, Any] = {"dtype": "bfloat16" if stored == torch.bfloat16 else "float32", **model.read_as}
    policy = PolicySettings(
        model=model.name,
        adapter=str(model.adapter) if model.adapter else None,
        train="lora" if model.adapter else "full",
        reference="none",
        **asked,
    )
    sampling = Sampling(num_generations=1, max_new_tokens=_LONGEST)
    folder = model.folder or Path(model.name)
    return Trained(folder=folder, config={}, policy=policy, data=InstructionData(), sampling=sampling)


def _adapter_of_hub(model: Model) -> Model:
    """The adapter that a hub has by that name, on its base; `model` itself where it is none, or cannot be asked for."""
    try:
        folder = Path(snapshot_download(model.name, allow_patterns=_OF_ADAPTERS))
    except (HfHubHTTPError, OSError, ValueError):
        return model  # and reading it will say why
    return adapter_in(folder, folder) if (folder / ADAPTER_CONFIG).is_file() else model


def _data_class(name: Any) -> type[TaskData]:
    """The class of lsemrl that a configuration names; it is chosen from those there are, and never imported."""
    module, _, last = str(name).rpartition(".")
    kind = _DATA.get(last)
    if kind is None or module not in ("", kind.__module__):
        raise ValueError(
            f"data names the class {str(name)!r}; a run's folder is read without running code of others, and knows "
            f"{', '.join(_DATA)}: of others, lsemrl predict --config writes the outputs, and runs their code"
        )
    return kind


def _check_settings(name: str, value: Any, of: Any) -> None:
    """Refuse what the parser would import as a class: a word, or class_path, where the settings `of` belong."""
    if not isinstance(value, dict) or "class_path" in value:
        raise ValueError(f"{name} is {str(value)[:60]!r}, and a run's folder can name no class there: write its fields")
    for field, hint in get_type_hints(of).items():
        inner = value.get(field)
        kinds = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        if kinds and inner is not None:
            _check_settings(f"{name}.{field}", inner, kinds[0])
        elif not isinstance(inner, str) and "class_path" in str(inner):
            raise ValueError(f"{name}.{field} names a class, and a run's folder can name none there")


def check_links(folder: Path, roots: Iterable[Path]) -> None:
    """Refuse links from within `folder` to elsewhere: whoever sent it may mean one to be read, and sent on."""
    inside = Path(os.path.realpath(folder))
    if inside.parent.name == "snapshots" and inside.parents[1].name.startswith("models--"):
        inside = inside.parents[1]  # as the cache of huggingface_hub keeps a model, and everything of it
    for root in roots:
        if folder.absolute() not in root.absolute().parents:
            continue
        for path in (root, *root.rglob("*")):
            if not Path(os.path.realpath(path)).is_relative_to(inside):
                raise UserError(
                    f"RUN is {str(folder)!r}, in which {path.name!r} leads out of it; put there what it leads to"
                )
