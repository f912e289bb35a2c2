"""What forks find done: imports, and what a command line reads once a process. The server of `forks` imports this."""

from __future__ import annotations

import atexit
import gc
import os
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO

gc.disable()  # until all is imported

import harness  # noqa: F401
import lightning.pytorch.loggers.tensorboard
import lightning.pytorch.strategies  # noqa: F401
import peft  # noqa: F401
import sentence_transformers  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import transformers.models.qwen3.modeling_qwen3  # noqa: F401

import lsemrl.commands.export
import lsemrl.metrics.scorer
import lsemrl.modules.sft  # noqa: F401
from lsemrl.cli.main import main
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from read_once import read_once

read_once()
os.fsync = lambda descriptor: None  # as in conftest
with suppress(SystemExit), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
    main(["fit", "--config", "grpo.yaml", "--print_config"])
Policy(PolicySettings(model="micro")).load()  # transformers and peft then know the patterns of names
gc.enable()
gc.freeze()  # or each fork would look through all of this, and so copy it
atexit.register(gc.unfreeze)  # for libraries that look for leaks as a process ends
