"""`lsemrl fit-language` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lsemrl.cli.main import main
from lsemrl.languages import language
from two_languages import sentences


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A parallel file with nested columns, and a third language by itself."""
    monkeypatch.chdir(tmp_path)
    pairs = zip(sentences("en", 120), sentences("pcm", 120), strict=True)
    lines = (json.dumps({"translation": {"en": en, "pcm": pcm}}) for en, pcm in pairs)
    Path("pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    third = "\n".join(text.replace("th", "sch").replace("tion", "ung") for text in sentences("en", 120, seed=8))
    Path("de.txt").write_text(f"{third}\n\n", encoding="utf-8")
    Path("language.yaml").write_text(
        "to: pcm\n"
        "texts:\n"
        "  pcm: {path: pairs.jsonl, column: translation.pcm}\n"
        "  en: {path: pairs.jsonl, column: translation.en}\n"
        "  de: {path: de.txt}\n"
        "output: runs/pcm\n",
        encoding="utf-8",
    )
    return tmp_path


def test_fitted_named_and_used(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit-language", "--config", "language.yaml"])
    said = capsys.readouterr().out
    assert re.search(r"^[\d.]+% of long held-out texts are told right; [\d.]+% of another's pass at most; fitted", said)
    assert "language: {code: pcm, identifier: runs/pcm}" in said
    assert sorted(path.name for path in Path("runs/pcm").iterdir()) == [
        "identifier.json",
        "identifier.md",
        "weights.safetensors",
    ]
    assert "| texts of | pcm | en | de | noise |" in Path("runs/pcm/identifier.md").read_text(encoding="utf-8")
    before = Path("runs/pcm/weights.safetensors").read_bytes()
    main(["fit-language", "--config", "language.yaml"])
    assert Path("runs/pcm/weights.safetensors").read_bytes() == before


def test_the_folder_that_one_stands_in_stays(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "here").mkdir()
    monkeypatch.chdir("here")
    texts = "{pcm: {path: ../pairs.jsonl, column: translation.pcm}, en: {path: ../pairs.jsonl, column: translation.en}}"
    main(words := ["fit-language", "--to=pcm", f"--texts={texts}", "--output=."])
    assert len(list(Path.cwd().iterdir())) == 3
    with pytest.raises(SystemExit):
        main(words)
    assert "output is '.', which holds an identifier already" in capsys.readouterr().err
    assert len(list((rows / "here").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to=yo"], "texts has no 'yo', which is what --to is"),
        (["--texts={pcm: {path: de.txt}}"], "texts has no other language"),
        (["--to=deu", "--texts={deu: {path: de.txt}, de: {path: de.txt}}"], "texts has 'deu' and 'de', which are one"),
        (["--texts={pcm: {path: nope.txt}, en: {path: de.txt}}"], "nope.txt"),
        (
            ["--texts={pcm: {path: pairs.jsonl, column: pcm}, en: {path: de.txt}}"],
            "pairs.jsonl:1: has no text in the column 'pcm'",
        ),
        (["--output=."], "output is '.', which holds something else"),
        (["--fit.held_out=2"], "fit.held_out is 2.0"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], says: str, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit-language", "--config", "language.yaml", *words])
    assert exit_.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lsemrl: error: ")]
    assert says in line
    assert not Path("runs").exists()


def test_a_tag_is_written_in_its_usual_form(rows: Path) -> None:
    words = ["--to=kaz_Cyrl", "--texts={kaz_Cyrl: {path: de.txt}, en: {path: pairs.jsonl, column: translation.en}}"]
    main(["fit-language", "--config", "language.yaml", *words])
    about = json.loads(Path("runs/pcm/identifier.json").read_text(encoding="utf-8"))
    assert about["language"] == language("kaz_Cyrl").code == "kk-Cyrl"


def test_the_identifier_of_another_language_is_not_replaced(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/pcm").mkdir(parents=True)
    about = Path("runs/pcm/identifier.json")
    about.write_text('{"language": "yo"}')
    with pytest.raises(SystemExit):
        main(["fit-language", "--config", "language.yaml"])
    assert "output is 'runs/pcm', which holds an identifier of 'yo'; name another --output" in capsys.readouterr().err
    assert about.read_text() == '{"language": "yo"}'
