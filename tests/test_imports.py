"""The walls between the rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
LIGHTNING = {
    "lsemrl.cli.trainer",
    "lsemrl.commands.demo",
    "lsemrl.modules.base",
    "lsemrl.modules.checkpoints",
    "lsemrl.modules.event_log",
    "lsemrl.modules.metrics_log",
    "lsemrl.modules.preemption",
    "lsemrl.modules.run_folder",
    "lsemrl.data.base",
    "lsemrl.data.mixed",
}


def imported(name: str) -> set[str]:
    """Every module that `name` imports anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative path"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(name: str) -> set[str]:
    return {module for module in imported(name) if module.startswith("lsemrl.")}


def test_types_import_torch_and_errors_only() -> None:
    assert {module.split(".")[0] for module in imported("lsemrl.types")} <= {
        "__future__",
        "collections",
        "dataclasses",
        "torch",
        "lsemrl",
    }
    assert own("lsemrl.types") == {"lsemrl.errors", "lsemrl.errors.UserError"}


def test_files_stand_on_the_lowest_floor() -> None:
    assert own("lsemrl.files") == {"lsemrl.errors", "lsemrl.errors.UserError"}
    assert {module.split(".")[0] for module in imported("lsemrl.files")} - {"lsemrl"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["lsemrl.modules.losses", "lsemrl.rewards.advantages"])
def test_losses_and_advantages_import_types_only(name: str) -> None:
    assert {".".join(module.split(".")[:2]) for module in own(name)} <= {"lsemrl.types"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_walls(name: str) -> None:
    modules = imported(name)
    if name not in ("lsemrl.__main__", "lsemrl.commands.demo") and not name.startswith("lsemrl.cli"):
        assert not {module for module in modules if module.startswith("lsemrl.cli")}, "nobody imports cli"
    if name not in LIGHTNING:
        assert not {module for module in modules if module.split(".")[0] == "lightning"}
    if name.startswith("lsemrl.rewards"):
        assert not {
            module for module in modules if module.startswith(("lsemrl.modules.policy", "lsemrl.modules.sampler"))
        }
    if name.startswith("lsemrl.kernels"):
        assert {module for module in own(name) if not module.startswith("lsemrl.kernels")} == set()
        assert "triton" not in modules or name == "lsemrl.kernels.triton_kernels"
    if name.startswith("lsemrl.data"):
        assert not {module for module in modules if module.startswith("lsemrl.modules")}
    if name in ("lsemrl.micro.grammar", "lsemrl.micro.corpus", "lsemrl.micro.oracle"):
        assert not {module for module in modules if module.split(".")[0] in ("torch", "transformers")}


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
