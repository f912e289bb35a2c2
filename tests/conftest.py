"""Fixtures that several rooms share.

What takes seconds is imported where it is needed: the process that deals tests out runs none, and all wait for it.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import tempfile
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from lsemrl.modules.policy import Policy
    from lsemrl.types import PromptBatch

gc.disable()  # until all is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it: a name that is no folder must not wait for a network
_CACHE = tempfile.TemporaryDirectory(prefix="lsemrl-tests-")  # removed when the process ends
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # nothing is read from, or written to, the cache of whoever runs the tests
os.fsync = lambda descriptor: None  # nobody pulls the plug, and a run of eight steps waits ninety times


def pytest_collection_finish() -> None:
    """What was imported is not looked through again whenever garbage is collected, nor read for every command."""
    from jsonargparse import set_parsing_settings

    from read_once import read_once

    read_once()
    # As for a command; what an earlier test read without it would be kept, and have no comments.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # for libraries that look for leaks as a process ends
    if "forks" in sys.modules:  # a test asks for them
        sys.modules["forks"].start_server()


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """The process that deals tests out imports the class of every warning it is told of, in a thread for each worker.

    Two threads that import torch, peft and what hangs on them at once can find each other's modules half made, and
    that worker, and then the whole run, is given up.
    """
    name, text = warning_message.category.__name__, str(warning_message.message)
    warning_message.category = UserWarning
    warning_message.message = UserWarning(text if name == "UserWarning" else f"{name}: {text}")


@pytest.fixture
def device() -> torch.device:
    """A GPU where one is present."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny model."""
    from tiny import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def tokenizer_of_tiny_model(tiny_model: str) -> PreTrainedTokenizerBase:
    """As a policy reads it."""
    from lsemrl.modules.pretrained import read_config_and_tokenizer

    return read_config_and_tokenizer(tiny_model, trust=False)[1]


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written without figures, which take most of their time: report/ looks at those."""
    monkeypatch.setattr("lsemrl.report.plots.draw", lambda report: {})


@pytest.fixture
def policy(tiny_model: str) -> Policy:
    """A tiny policy with an adapter whose second factor is not zero, so that it differs from its base."""
    from tiny import make_policy

    return make_policy(tiny_model)


@pytest.fixture
def prompts(tokenizer_of_tiny_model: PreTrainedTokenizerBase) -> PromptBatch:
    """Three prompts of different lengths with references of different lengths."""
    from lsemrl.data.collate import encode
    from lsemrl.types import Example

    rows = (
        ("翻译成藏文：老师买了书。", "དགེ་རྒན་གྱིས་དེབ་ཉོས།"),
        ("早上好", "ཞོགས་པ"),
        ("学生在学校读了新的信。", "སློབ་མས་ཡི་གེ་གསར་པ་བཀླགས།"),
    )
    examples = [
        Example(id=str(at), prompt=prompt, source=prompt, references=(reference,))
        for at, (prompt, reference) in enumerate(rows)
    ]
    return encode(tokenizer_of_tiny_model, examples)
