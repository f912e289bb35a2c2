"""COMET, by its own program: its package asks for other versions of transformers and jsonargparse than lsemrl does.

`pipx install unbabel-comet` gives it an environment of its own and puts `comet-score` on the path.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lsemrl.errors import UserError
from lsemrl.files import write_text
from lsemrl.languages import Language, is_same
from lsemrl.metrics.corpus import Score

PROGRAM = "comet-score"
# What XLM-R, which most of its models stand on, was trained on (Conneau et al. 2020, table 6).
_READ = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id is it "
    "ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl so sq "
    "sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh"
)
_VERSION = "import importlib.metadata as found; print(found.version('unbabel-comet'))"


def check_program() -> str:
    """Where the program is.

    Raises:
        UserError: It is not on the path.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise UserError(
            f"metrics.names has 'comet', whose program {PROGRAM} is not on the path; pipx install unbabel-comet, or "
            "leave it out"
        )
    return found


def unread(language: Language) -> str | None:
    """A sentence about a language that most models of COMET were never shown."""
    if any(is_same(language.code, code) for code in _READ.split()):
        return None
    return f"comet says little: XLM-R, which most of its models stand on, was not trained on {language.name}"


def comet(outputs: Sequence[str], sources: Sequence[str], references: Sequence[Sequence[str]], model: str) -> Score:
    """Mean COMET of outputs with their sources and first references.

    Args:
        outputs: N texts.
        sources: What each was translated from.
        references: One or more for each output.
        model: A name that the program can fetch, or a .ckpt file.

    Raises:
        UserError: The program is not there, ends with a fault, or gives something else than N scores.
    """
    program = check_program()
    device = "1" if _has_gpu() else "0"
    with TemporaryDirectory() as folder:
        files = {"s": sources, "t": outputs, "r": [texts[0] for texts in references]}
        words = [program, "--quiet", "--only_system", "--gpus", device, "--model", model]
        for name, texts in files.items():
            path = Path(folder) / name
            # It reads a text a line, and takes whatever ends a line for an end.
            write_text(path, "".join(f"{' '.join(text.split())}\n" for text in texts))
            words += [f"-{name}", str(path)]
        result = Path(folder) / "scores.json"
        # Neither our packages nor our folder are for its interpreter.
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ran = subprocess.run(
            [*words, "--to_json", str(result)], cwd=folder, env=own, capture_output=True, text=True, errors="replace"
        )
        if ran.returncode:
            said = (ran.stderr.strip().splitlines() or ["nothing"])[-1][:200]
            raise UserError(
                f"metrics.names has 'comet', and {PROGRAM} with model {model!r} ended with {ran.returncode} ({said}); "
                f"run {PROGRAM} by itself, or leave it out"
            )
        try:
            (scored,) = json.loads(result.read_text(encoding="utf-8")).values()
            rows = tuple(float(row["COMET"]) for row in scored)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{PROGRAM} gave no scores that can be read ({error!r}); leave 'comet' out") from error
    if len(rows) != len(outputs):
        raise UserError(f"{PROGRAM} gave {len(rows)} scores for {len(outputs)} outputs; leave 'comet' out")
    return Score.mean(rows, signature_of(model))


def signature_of(model: str) -> str:
    """How `comet` computes a score: by which weights, and by which version of the program.

    Raises:
        UserError: The program is not there.
    """
    return f"COMET|model:{_name(model)}|nrefs:first|version:unbabel-comet-{_version(check_program())}"


def _name(model: str) -> str:
    """A hash of a file, most of which are called model.ckpt; what the program fetches has a name."""
    if not Path(model).is_file():
        return model
    with Path(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _version(program: str) -> str:
    """Of the package that the program is of, as its own interpreter knows it."""
    with Path(program).open("rb") as file:
        first = file.readline(1000).decode(errors="replace").strip()
    interpreter = first.removeprefix("#!").split()
    if not first.startswith("#!") or not interpreter or "python" not in interpreter[0]:
        return "unknown"
    asked = subprocess.run([*interpreter, "-c", _VERSION], capture_output=True, text=True, errors="replace")
    return asked.stdout.strip() or "unknown"
