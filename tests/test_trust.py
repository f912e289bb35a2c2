"""What SECURITY.md says is not trusted: each is brought here by somebody who means harm."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lsemrl import trained
from lsemrl.data.base import TaskData
from lsemrl.trained import read_run
from lsemrl.types import UserError

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "lsemrl.modules.grpo.GRPO",
        "init_args": {
            "policy": {"model": "micro", "adapter": "micro", "lora": {"rank": 4}},
            "sampling": {"num_generations": 2, "max_new_tokens": 4},
        },
    },
    "data": {
        "class_path": "lsemrl.data.translation.TranslationData",
        "init_args": {"source": {"path": "micro", "columns": {"zh": "a"}}, "splits": {"part": "all"}, "limits": {}},
    },
}
NAMES = ("evil.Evil", {"class_path": "evil.Evil"}, ["evil.Evil"])


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the working directory, found first, as under `python -m`."""
    code = "from lsemrl.data.translation import TranslationData\nclass Evil(TranslationData): pass\n"
    (tmp_path / "evil.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("evil", None)


def make_run(config: Any) -> Path:
    """A folder that looks like a finished run's."""
    folder = Path("runs/version_0")
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The way to every field of what is read of a run: not to the name of its module, of which nothing is made."""
    if path and path != ("model", "class_path"):
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))


@pytest.mark.parametrize("place", list(places(CONFIG)), ids=".".join)
def test_a_runs_folder_imports_nothing_wherever_it_names_a_class(place: tuple[str, ...], evil: None) -> None:
    for name in NAMES:
        config = copy.deepcopy(CONFIG)
        at = config
        for field in place[:-1]:
            at = at[field]
        at[place[-1]] = name
        try:
            read_run(make_run(config))
        except UserError as error:
            assert "RUN is 'runs/version_0'" in str(error)
        else:
            assert isinstance(name, str)  # a text where a text belongs
        assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["evil.Evil", "lsemrl.data.translation.evil.Evil", "os.TranslationData", "Evil"])
def test_a_class_that_is_not_lsemrls_is_told(name: str, evil: None) -> None:
    config = copy.deepcopy(CONFIG) | {"data": CONFIG["data"] | {"class_path": name}}
    with pytest.raises(UserError, match=f"data names the class {name!r}.*knows ComprehensionData, Head"):
        read_run(make_run(config))


def test_own_rewards_loggers_and_callbacks_are_no_hindrance(evil: None) -> None:
    config = copy.deepcopy(CONFIG)
    own = {"class_path": "evil.Evil"}
    config["model"]["init_args"] |= {"rewards": {"mine": own}, "optimizer": own}
    config["trainer"] = {"callbacks": [own], "logger": own}
    replayed = {"class_path": "lsemrl.data.mixed.MixedData", "init_args": {"main": config["data"], "replay": own}}
    for data in (config["data"], replayed):
        run = read_run(make_run(config | {"data": data}))
        assert run.data.plan.task.name.startswith("zh") and run.sampling.num_generations == 2
    assert "evil" not in sys.modules


def test_every_task_of_lsemrl_can_be_taken_up() -> None:
    ours = {kind.__name__ for kind in TaskData.__subclasses__() if kind.__module__.startswith("lsemrl.")}
    assert ours == trained._DATA.keys()


def test_a_link_out_of_a_runs_folder_is_refused(evil: None) -> None:
    folder = make_run(CONFIG)
    secret = Path("secret")
    secret.write_text("a key")
    read_run(folder)
    link = folder / "adapter" / "chat_template.jinja"
    link.symlink_to(secret.absolute())
    with pytest.raises(UserError, match=r"in which 'chat_template\.jinja' leads out of it"):
        read_run(folder)
    link.unlink()
    (folder / "adapter" / "inner.json").write_text(json.dumps({}))
    link.symlink_to("inner.json")
    read_run(folder)
    Path("shortcut").symlink_to(folder)
    read_run(Path("shortcut"))  # a user's own way to it
