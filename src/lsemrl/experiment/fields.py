"""The fields that a run goes by: of its files and overrides, and of the files that these name in place of fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsemrl import micro
from lsemrl.reading import Unreadable, read_yaml, user_path

Field = tuple[str, Any]
"""Its dotted name, which begins with a dot and lacks init_args, and its value."""
_OPEN = {
    **dict.fromkeys(
        ("TranslationData", "HeadlineData", "InstructionData", "ComprehensionData", "ChoiceData"), "source.path"
    ),
    **dict.fromkeys(("SemanticSimilarity", "Coverage"), "encoder"),
}
"""By the name of a class: the field that is the embedded world's where nobody gives it."""
_LARGEST = 100_000
"""Bytes of a file of fields; a larger one is data."""


def layered(layers: Iterable[tuple[Mapping[str, Any], Path]]) -> list[Field]:
    """The fields of layers, less what a later one replaces: that is other commands' business.

    Of a mapping only the fields that a later one names are replaced; where more are in truth, too many count.

    Args:
        layers: Each with the folder from which it names files of fields.
    """
    result: list[Field] = []
    for layer, folder in layers:
        fields = list(_fields(layer, folder))
        covers = tuple(f"{path}." for path, _ in fields)
        result = [(path, value) for path, value in result if not f"{path}.".startswith(covers)] + fields
    return result


def strings(value: Any) -> Iterator[str]:
    """The texts in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from strings(inner)


def in_world(fields: Sequence[Field], left_open: Iterable[str]) -> bool:
    """Whether anything is the embedded world's, because it is named or because nothing else is.

    Args:
        fields: Those of a run.
        left_open: Dotted fields that are the embedded world's where nobody gives them.
    """
    needed = [f".{field}" for field in left_open]
    for path, value in fields:
        texts = set(strings(value))
        if any(text.partition(":")[0] == micro.NAME for text in texts):
            return True
        if path.endswith(".metrics.names") and "similarity" in texts:
            needed.append(f"{path.removesuffix('names')}encoder")
        if isinstance(value, str) and (path.endswith(".class_path") or "." in value):
            field = _OPEN.get(value.rpartition(".")[2])
            needed += [f"{path.removesuffix('.class_path')}.{field}"] if field else []
    given = tuple(f"{path}." for path, _ in fields)  # a null in the place of a mapping gives all of it
    return any(not any(f"{field}.".startswith(path) for path in given) for field in needed)


def _fields(value: Any, folder: Path, path: str = "", within: tuple[Path, ...] = ()) -> Iterator[Field]:
    """The dotted fields that hold no others, as users write them, who may leave init_args out."""
    if isinstance(value, str):
        file, value = _of_text(value, folder)
        if file in within:
            return
        if file:
            yield f"{path}.(file)", str(file)
            folder, within = file.parent, (*within, file)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _fields(inner, folder, f"{path}.{name}", within)
    else:
        yield ".".join(part for part in path.split(".") if part != "init_args"), value


def _of_text(text: str, folder: Path) -> tuple[Path | None, Any]:
    """What the parser makes of a text: of YAML its value, of the name of a file of fields these, and else the text."""
    import yaml

    if text.strip()[:1] + text.strip()[-1:] in ("{}", "[]"):
        try:
            return None, yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            return None, text
    if not text.endswith((".yaml", ".yml", ".json")):
        return None, text
    file = folder / user_path(text)
    try:
        fields = read_yaml(file) if file.stat().st_size <= _LARGEST else None
    except (Unreadable, OSError, ValueError):
        fields = None
    return (file, fields) if isinstance(fields, Mapping) else (None, text)
