"""What SECURITY.md says is not trusted: each is brought here by somebody who means harm."""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import io
import json
import pickle
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands import answers, trained
from lsemrl.commands.named import find
from lsemrl.commands.scored import parts_of, score
from lsemrl.commands.trained import read_run, take_up
from lsemrl.data.base import TaskData
from lsemrl.data.prompts import PromptTemplate
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.rollout_report import append_samples
from lsemrl.rewards.semantic import SemanticSimilarity
from lsemrl.types import Completion, Example, UserError

ROOT = Path(__file__).parents[1]
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
            # A text where a text belongs; several columns hold several references.
            assert isinstance(name, str) or (isinstance(name, list) and place[-2] == "columns")
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
    fields = {"main": config["data"], "replay": own, "replay_share": 0.3, "more": None}
    replayed = {"class_path": "lsemrl.data.mixed.MixedData", "init_args": fields}
    for data in (config["data"], replayed):
        run = read_run(make_run(config | {"data": data}))
        assert run.data.plan.task.name.startswith("zh") and run.sampling.num_generations == 2
    assert "evil" not in sys.modules


def test_a_runs_folder_cannot_trust_the_code_of_its_model(evil: None) -> None:
    config = copy.deepcopy(CONFIG)
    config["model"]["init_args"]["policy"]["trust_remote_code"] = True
    with pytest.raises(UserError, match="trust_remote_code is true, which is for its owner to say"):
        read_run(make_run(config))


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


def test_a_link_out_of_an_adapter_or_a_model_is_refused(model: Path, adapter: Path, evil: None, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    exported = tmp_path / "exported"
    shutil.copytree(adapter, exported / "adapter")
    shutil.copytree(model, exported / "base")
    edit(exported / "adapter" / "adapter_config.json", base_model_name_or_path="/theirs/base")
    for folder, holds in ((model, "."), (adapter, "."), (exported, "base"), (exported / "adapter", "../base")):
        take_up(find(str(folder), Path("runs")))
        link = folder / holds / "notes.jinja"
        link.symlink_to(secret)
        with pytest.raises(UserError, match=r"in which 'notes\.jinja' leads out of it"):
            take_up(find(str(folder), Path("runs")))
        link.unlink()


def test_what_the_cache_of_a_hub_links_to_is_the_models_own(model: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0"
    shutil.move(model, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    take_up(find(str(snapshot), Path("runs")))
    (tmp_path / "secret").touch()
    (snapshot / "notes.jinja").symlink_to("../../../secret")
    with pytest.raises(UserError, match="leads out of it"):
        take_up(find(str(snapshot), Path("runs")))


def test_a_models_own_code_is_not_run_whoever_names_it(model: Path, adapter: Path, evil: None) -> None:
    edit(
        model / "config.json",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
        model_type="evil",
    )
    shutil.copy("evil.py", model)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    for folder in (model, adapter):
        with pytest.raises(UserError, match="Python code of its own"):
            take_up(find(str(folder), Path("runs")))
    assert "evil" not in sys.modules


def test_rewards_of_a_run_import_nothing_and_write_nothing(encoder: Path, evil: None) -> None:
    config = copy.deepcopy(CONFIG)
    mine = {"class_path": "lsemrl.rewards.SemanticSimilarity", "init_args": {"cache_dir": "theirs", "device": "cuda:9"}}
    parts: dict[str, Any] = {"similarity": mine, "evil": {"class_path": "evil.Evil"}, "named": "evil.Evil"}
    parts["inner"] = {"class_path": "lsemrl.rewards.Bleu", "init_args": {"language": {"class_path": "evil.Evil"}}}
    parts["kind"] = {"class_path": "evil.SemanticSimilarity"}
    config["model"]["init_args"]["rewards"] = parts
    folder = make_run(config)
    mix, left_out = parts_of(read_run(folder))
    assert list(mix.parts) == ["similarity"] and len(left_out) == 4
    assert score(mix, "a", "བོད", "བོད", pair=True) == "similarity 1.0000"
    assert "evil" not in sys.modules and not Path("theirs").exists()
    shutil.move(encoder, folder / "encoder")
    mine["init_args"] = {"encoder": str(folder / "encoder")}
    covers = {"class_path": "lsemrl.rewards.Coverage", "init_args": {**mine["init_args"], "floor": 0.2}}
    config["model"]["init_args"]["rewards"] = {"similarity": mine, "covers": covers}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert set(parts_of(read_run(folder))[0].parts) == {"similarity", "covers"}
    (folder / "encoder" / "notes.txt").symlink_to(Path("evil.py").absolute())
    mix, left_out = parts_of(read_run(folder))
    assert list(mix.parts) == ["chrf"]
    assert len(left_out) == 2 and all("'notes.txt' leads out of it" in line for line in left_out)


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def load(model: Path, adapter: Path | None = None) -> None:
    policy = Policy(PolicySettings(model=str(model), adapter=str(adapter) if adapter else None))
    policy.load()


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def model(tiny_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro.COLD_START, tmp_path / "adapter"))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro.ENCODER, tmp_path / "encoder"))


def test_a_pickle_in_place_of_weights_is_not_run(model: Path, adapter: Path, encoder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with (tmp_path / "probe").open("wb") as file:
        pickle.dump(Payload(trace), file)
    pickle.loads((tmp_path / "probe").read_bytes())
    assert trace.exists()  # it would leave its trace
    trace.unlink()
    for folder, name in ((model, "pytorch_model.bin"), (adapter, "adapter_model.bin"), (encoder, "pytorch_model.bin")):
        next(folder.glob("*.safetensors")).unlink()
        torch.save({"weight": Payload(trace)}, folder / name)
    with contextlib.suppress(Exception):
        load(model)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load(micro.POLICY, adapter)
    with pytest.raises(UserError, match="could not be loaded"):
        SemanticSimilarity(encoder=str(encoder)).encoder  # noqa: B018
    assert not trace.exists()


def test_attention_from_a_hub_is_refused(model: Path) -> None:
    edit(model / "config.json", _attn_implementation="evil/kernel")
    with pytest.raises(UserError, match=r"asks for attention by code from a hub \('evil/kernel'\)"):
        load(model)


def test_an_adapter_names_no_module_to_import(adapter: Path, evil: None) -> None:
    edit(adapter / "adapter_config.json", auto_mapping={"base_model_class": "Evil", "parent_library": "evil"})
    load(Path(micro.NAME), adapter)
    edit(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil")
    with pytest.raises(UserError, match="megatron"):
        load(Path(micro.NAME), adapter)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("kind", ["evil.Evil", "os.path", "1_Pooling.evil.Evil"])
def test_an_encoder_names_no_module_to_import(kind: str, encoder: Path, evil: None) -> None:
    shutil.copy("evil.py", encoder)
    modules = json.loads((encoder / "modules.json").read_text())
    modules[1]["type"] = kind
    (encoder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"could not be loaded"):
        SemanticSimilarity(encoder=str(encoder)).encoder  # noqa: B018
    assert "evil" not in sys.modules


def test_a_chat_template_reaches_nothing_of_python(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    policy = Policy(PolicySettings(model=str(model)))
    with pytest.raises(UserError, match="template"):
        PromptTemplate(template="{source}").render(policy.tokenizer, {"source": "a"})


def test_samples_hold_no_formula(tmp_path: Path) -> None:
    texts = ("=1+1", "+cmd|' /C calc'!A0", "-5", "བོད")
    completions = [
        Completion(text=text, example=Example(id=text, prompt="p", source=text, references=(text,)), ended=True)
        for text in texts
    ]
    numbers_N = torch.tensor([-1.5, 0.0, 1.0, 2.0])
    rewards = SimpleNamespace(plain_N=numbers_N, parts_N={"=mine": numbers_N})
    rollouts = SimpleNamespace(completions=completions, num_generations=2)
    append_samples(tmp_path / "samples.csv", 0, rollouts, rewards, numbers_N)  # type: ignore[arg-type]
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in ("id", "source", "reference", "completion"):
        assert [row[name] for row in rows] == ["'=1+1", "'+cmd|' /C calc'!A0", "-5", "བོད"]
    assert rows[0]["reward"] == rows[0]["advantage"] == rows[0]["'=mine"] == "-1.5000"


@pytest.mark.parametrize("terminal", [True, False])
def test_outputs_are_shown_on_a_terminal_and_kept_in_a_pipe(
    terminal: bool, evil: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    said = "\x1b[2Jمەن\u200f \u202eabc"
    monkeypatch.setattr(answers, "load", lambda policy: None)
    monkeypatch.setattr(answers, "answer", lambda run, policy, texts, sampling, **settings: ((said, "") for _ in texts))
    (tmp_path / "input.txt").write_text("a\n")
    run = make_run(CONFIG)
    shutil.copytree(micro.COLD_START, run / "adapter", dirs_exist_ok=True)
    main(["generate", str(run), "--input", str(tmp_path / "input.txt")])
    assert out.getvalue() == (r"\x1b[2Jمەن" + "\u200f " + r"\u202eabc" if terminal else said) + "\n"


def test_security_md_names_a_test_for_whatever_is_not_trusted() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    not_trusted = text.partition("## Not trusted")[2].partition("\n## ")[0]
    points = [point for point in not_trusted.split("\n- ")[1:]]
    assert len(points) > 6
    for point in points:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", point)
        assert named, point
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_the_licence_is_the_one_that_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]  # hatchling puts it in wheels
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert (
        digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    )  # of apache.org/licenses/LICENSE-2.0.txt
