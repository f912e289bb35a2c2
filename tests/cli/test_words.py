"""Words as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsemrl.cli.words import spelled_out
from lsemrl.errors import UserError

HINTS = {
    "run": Path,
    "batch_size": int,
    "dry_run": bool,
    "chat": bool | None,
    "seeds": list[int] | None,
    "against": list[str],
    "path": list[list[str]] | None,
    "num_fewshot": dict[str, int],
}


@pytest.mark.parametrize(
    ("typed", "spelled"),
    [
        ("x --batch-size 8", "x --batch_size=8"),
        ("--batch_size=8 --dry-run x", "--batch_size=8 --dry_run=true x"),
        ("--dry-run=false --chat true", "--dry_run=false --chat=true"),
        ("--dry-run false x", "--dry_run=false x"),
        ("--dry-run true --dry-run", "--dry_run=true --dry_run=true"),
        ("--seeds 1 -2 --dry_run", '--dry_run=true --seeds=["1","-2"]'),
        ("--seeds=[1,2]", "--seeds=[1,2]"),
        ("--seeds [1,2]", "--seeds=[1,2]"),
        ("--seeds 1 --seeds [2,3]", "--seeds=[2,3]"),
        ("--seeds [2,3] --seeds 1", '--seeds=[2,3] --seeds=["1"]'),
        ("--against=a --against b c", '--against=["a","b","c"]'),
        ("--path a b --path c", '--path=[["a","b"],["c"]]'),
        ("--policy.adapter -x --config=a=b", "--policy.adapter=-x --config=a=b"),
        ("--num_fewshot.ceval-valid 5", "--num_fewshot.ceval-valid=5"),
        ("--batch-size --no-such --help x", "--batch_size --no-such --help x"),
        ("a b -h", "a b -h"),
    ],
)
def test_an_option_and_its_value_are_one_word(typed: str, spelled: str) -> None:
    assert [word.replace(", ", ",") for word in spelled_out(typed.split(), HINTS, "run")] == spelled.split()


def test_words_by_their_place_are_one_list_wherever_they_stand() -> None:
    hints = {"folders": list[Path], "output": Path, "merged": bool}
    words = ["1e5", "--output", "null", "a: b", "--merged", "[x", "\udcff"]
    found = spelled_out(words, hints, "folders")
    assert found == ["--output=null", "--merged=true", r'["1e5", "a: b", "[x", "\udcff"]']


@pytest.mark.parametrize("words", [["--output=a", "--output", "b"], ["--output", "a", "--chat", "--output=b"]])
def test_a_file_is_named_once(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"--output is given twice \(a, b\); give it once"):
        spelled_out(words, {**HINTS, "output": Path | None})
