"""What a user brings is read as it was written, or refused with the reason; never a hang, never another exception."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from lsemrl.reading import (
    Json,
    Unreadable,
    fault_of,
    lines,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    read_yaml,
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"a\rb\r", ["a", "b"]),  # of an old Mac
        (b"a\rb\nc\n", ["a\rb", "c"]),  # a stray one is no end, or line n would no longer answer line n
        ("a\u2028b\u0085c\x0bd\n".encode(), ["a\u2028b\u0085c\x0bd"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "b"]),  # two files joined
        ("a\ufeffb\n".encode(), ["a\ufeffb"]),  # in a text it is a letter
        (b"\xff\n", ["\udcff"]),
        (b"\n", [""]),
        (b"", []),
    ],
)
def test_lines_end_where_the_writer_ended_them(data: bytes, expected: list[str]) -> None:
    assert list(lines(io.BytesIO(data))) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [("\udcff", "bytes that are not UTF-8"), ("\ud800", "half a character"), ("a\0", "NUL"), ("\ufeffa", "")],
)
def test_faults_of_text(text: str, reason: str) -> None:
    assert reason in fault_of(text) and bool(reason) == bool(fault_of(text))


def test_only_files_are_read_as_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    heard = socket.socket(socket.AF_UNIX)
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)  # names of sockets are short
        heard.bind("socket")
    finally:
        os.fchdir(here)
        os.close(here)
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(2**42)  # holes only
    for name, reason in (
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("loop", "symbolic links"),
        ("endless", "more than the memory"),
        ("nowhere", "No such file"),
        ("nul\0nul", "null"),
        ("n" * 300, "too long"),
        (".", "directory"),
        ("/dev/zero", "a device"),
    ):
        with pytest.raises(Unreadable, match=reason):
            read_bytes(tmp_path / name)
    with pytest.raises(Unreadable, match="No such file"):
        read_bytes("~nobody-of-this-name/file")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("x".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"PK\x03\x04", "ZIP or Excel"),
        (b"PAR1", "Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_other_files_under_a_text_files_name_are_known(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    for read in (read_lines, read_text, read_json, read_yaml):
        with pytest.raises(Unreadable, match=reason):
            read(tmp_path / "file")  # type: ignore[operator]


def test_text_that_is_not_utf8_is_told_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(Unreadable, match="line 3 holds bytes that are not UTF-8"):
        read_text(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested too deep"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "has the field 'c' twice"),
        ('{"a": 1', "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_json_that_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        Json().parse(text)


def test_numbers_of_any_length_are_read() -> None:
    assert Json().parse('{"a": 1' + "0" * 5_000 + ', "b": 2}') == {"a": float("inf"), "b": 2}


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]", "nested without end"),
        ("a: &a {b: *a}", "nested without end"),
        ("[" * 5_000, "too deep"),
        ("[" * 200 + "]" * 200, "too deep"),
        (LAUGHS, "repeats its parts"),
        ("a:\n  lr: 1\n  lr: 2", "line 3 has the field 'lr' a second time"),
        ("a: 2024-13-45", "cannot be"),
        ("a: !!int x", "cannot be"),
        ("a: !!timestamp x", "cannot be"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: " + "9" * 5_000, "cannot be"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: \x07", "not allowed"),
    ],
)
def test_yaml_that_cannot_be_read(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(Unreadable, match=reason):
        read_yaml(tmp_path / "file.yaml")


def test_anchors_that_end_are_read(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a\n")
    assert read_yaml(tmp_path / "file.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
