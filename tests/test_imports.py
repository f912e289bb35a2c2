"""The walls between the rooms."""

from __future__ import annotations

import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from floors import FILES, LEVELS, PICTURE, drawn, imported, is_folder, own, room

LIGHTNING = {
    "lsemrl.commands.arms",
    "lsemrl.commands.trainer_cli",
    "lsemrl.modules.base",
    "lsemrl.modules.callback_states",
    "lsemrl.modules.checkpoints",
    "lsemrl.modules.metrics_log",
    "lsemrl.commands.loggers",
    "lsemrl.modules.progress_lines",
    "lsemrl.modules.trackio_log",
    "lsemrl.modules.preemption",
    "lsemrl.modules.run_folder",
    "lsemrl.modules.run_state",
    "lsemrl.modules.trainer_data",
    "lsemrl.modules.trainer_settings",
}


def test_every_import_runs_down() -> None:
    up = []
    pairs = [(name, other) for name in FILES.keys() - {"lsemrl", "lsemrl.__main__"} for other in own(name)]
    for name, other in pairs:
        here, there = room(name), room(other)
        beside = LEVELS[here] == LEVELS[there] and not is_folder(here) and not is_folder(there)
        if not (LEVELS[here] < LEVELS[there] or here == there or beside):
            up.append(f"{name} imports {other}, no floor below it")
    assert not up


def test_no_imports_go_in_a_circle() -> None:
    order = TopologicalSorter({name: own(name) for name in FILES})
    order.prepare()  # raises CycleError, which names them


def test_the_picture_of_the_house_is_of_the_imports_as_they_are() -> None:
    assert PICTURE.read_text(encoding="utf-8") == drawn(), "draw it again: python tests/floors.py"


def test_types_import_torch_and_errors_only() -> None:
    assert {module.split(".")[0] for module in imported("lsemrl.types")} <= {
        "__future__",
        "collections",
        "dataclasses",
        "typing",
        "torch",
        "lsemrl",
    }
    assert own("lsemrl.types") == {"lsemrl.errors"}


def test_files_stand_on_the_lowest_floor() -> None:
    assert own("lsemrl.files") == {"lsemrl.errors"}
    assert {module.split(".")[0] for module in imported("lsemrl.files")} - {"lsemrl"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["lsemrl.modules.losses", "lsemrl.rewards.advantages"])
def test_losses_and_advantages_import_types_only(name: str) -> None:
    assert {".".join(module.split(".")[:2]) for module in own(name)} <= {"lsemrl.types"}


def test_walls() -> None:
    whole = {name: {module.split(".")[0] for module in imported(name)} for name in FILES}
    assert {name for name, roots in whole.items() if "lightning" in roots} <= LIGHTNING
    kernels = [name for name in FILES if name.startswith("lsemrl.kernels")]
    assert not {module for name in kernels for module in own(name) if not module.startswith("lsemrl.kernels")}
    assert {name for name in kernels if "triton" in whole[name]} <= {"lsemrl.kernels.triton_kernels"}
    for name in ("lsemrl.micro.grammar", "lsemrl.micro.corpus", "lsemrl.micro.oracle"):
        assert not {"torch", "transformers"} & whole[name]


def test_only_files_writes_where_a_file_is_to_lie() -> None:
    """The cache of vectors writes aside too, and goes on without where it cannot."""
    way = re.compile(r"""\.(write_text|write_bytes|touch)\(|json\.dump\(|to_csv\(|open\([^)]*["'][wx][bt+]?["']""")
    found = {name for name, path in FILES.items() if way.search(path.read_text(encoding="utf-8"))}
    assert found == {"lsemrl.files", "lsemrl.rewards.cache"}, "write with lsemrl.files"


def test_importing_the_package_or_its_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, lsemrl, lsemrl.cli.main; lsemrl.cli.main.main(['--help']);"
        "print([name for name in ('torch', 'transformers', 'triton', 'lightning') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
