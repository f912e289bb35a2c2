"""What lsemrl check says of a user's rows, on the terminal, as a page and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsemrl.cli.main import main
from lsemrl.data import prepared as prepared_rows
from lsemrl.data.limits import to_examples
from lsemrl.micro import corpus


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [f"{row['zh']}\t{row['bo']}" for row in corpus.translation("train", 60, 0)]
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "\n".join(["zh\tbo", *lines, "二\t<script>alert(1)</script> \u202e", "三\t\u200b", ""]), encoding="utf-8"
    )
    return path


def found(folder: str) -> dict:
    return json.loads((Path(folder) / "check.json").read_text(encoding="utf-8"))


def test_rows_alone(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # its own folder may be written again
        main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", "--output", "out"])
    said = capsys.readouterr().out
    assert "bo: " in said and "syllables on average" in said
    record = found("out")
    assert sum(record["rows"].values()) == 61 and record["cost"] is None and record["tokens"] == []
    sentences = [one["says"] for one in record["findings"]]
    assert any("field 'bo' holds nothing that is seen, only such as U+200B" in each for each in sentences)
    assert any("1 of 61 'bo' are not Tibetan" in each for each in sentences)
    page = (Path("out") / "check.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    assert page.count("data:image/png;base64,") == 1
    assert sorted(path.name for path in rows.parent.iterdir()) == ["out", "pairs.tsv"]  # nothing beside the data
    rows.write_text("zh\tbo\n一二三\tགཅིག་གཉིས།\n" * 1 + "四五六\tབཞི་ལྔ།\n", encoding="utf-8")
    main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", "--output", "out"])
    assert "cannot be used" not in capsys.readouterr().out  # what was left out another time


def test_a_code_that_is_no_languages_is_told(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--source-column", "zh", "--target-column", "bo", "--output", "out"]
    main(["check", "pairs.tsv", "--from", "zh", "--to", "tibetan", *words])
    says = "'tibetan' is no code of a language (that of tibetan is bo), so that nothing is known of it but this name"
    assert f"warning: {says}" in capsys.readouterr().out and says in [one["says"] for one in found("out")["findings"]]
    main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", *words])
    assert "no code of a language" not in capsys.readouterr().out


def test_what_leaves_nothing_to_measure_by_is_told(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write_text("zh\tbo\n一二三\tགཅིག་གཉིས།\n四五六\t1234\n", encoding="utf-8")
    main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", "--output", "out"])
    said = capsys.readouterr().out
    assert "warning: no row is held out for validation; give more rows, or a file of its own (--validation)" in said
    assert "warning: no row is held out for test" in said and "warning: 1 of 2 'bo' hold no letter" in said


def test_rows_that_are_all_held_out_leave_nothing_to_train_on(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write_text("zh\tbo\n" + "一\tབཞི་ལྔ།\n" * 3, encoding="utf-8")  # its hash is one of the test's
    with pytest.raises(SystemExit):
        main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", "--output", "out"])
    assert "error: no row is left to train on, as all are held out; give more rows" in capsys.readouterr().err
    assert "2 test rows are another row again" in (Path("out") / "check.html").read_text(encoding="utf-8")


def test_with_a_policy_and_an_encoder(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*rows.read_text(encoding="utf-8").splitlines(), "学生<|end|>\tསློབ་མ།"]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("known.tsv").write_text("\n".join(lines[:31]) + "\n", encoding="utf-8")
    words = ["--from", "zh", "--to", "bo", "--validation", "known.tsv", "--policy.model", "micro", "--encoder", "micro"]
    main(["check", "pairs.tsv", *words])
    said = capsys.readouterr().out
    assert "estimate: memory: about" in said and "positions" in said
    assert "warning: 1 of 92 rows hold the text of a special token" in said and "(such as pairs.tsv:64)" in said
    record = found("check")
    assert {(one["by"], one["what"]) for one in record["tokens"]} == {
        ("policy.model 'micro'", "references"),
        ("policy.model 'micro'", "sources"),
        ("--encoder 'micro'", "references"),
    }
    cost = record["cost"]
    assert cost["rows"] < record["rows"]["train"] - 16  # training leaves out what it is validated on
    assert f"estimate: {cost['rows'] // 16} steps" in said
    assert cost["prompts"] == 16 and cost["completions"] == 128 and cost["memory_bytes"] > 4 * cost["trained"]


def test_sentences_without_a_translation(
    rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    monkeypatch.setattr(
        prepared_rows,
        "to_examples",
        lambda kept, *args, **words: prepared.append(len(kept)) or to_examples(kept, *args, **words),
    )
    sentences = [str(row["zh"]) for row in corpus.translation("train", 400, 0)][60:]
    Path("mono.txt").write_text("\n".join([*sentences, "students", "\u200b", ""]), encoding="utf-8")
    words = ["--from", "zh", "--to", "bo", "--untranslated", "mono.txt", "--policy.model", "micro"]
    main(["check", "pairs.tsv", *words])
    said, record = capsys.readouterr().out, found("check")
    assert sum(prepared) == sum(record["rows"].values())  # every row once
    assert record["rows"]["untranslated"] == 341 and f"estimate: {341 // 16} steps" in said
    says = [one["says"] for one in record["findings"]]
    bad = "1 rows of mono.txt cannot be used and are listed in check/untranslated.skipped.jsonl"
    assert any(bad in one for one in says)
    assert "without a translation: 1 of 341 'zh' are not Chinese by its letters" in says
    # What it would take is of the sentences, with answers as long as those of the pairs.
    Path("mono.txt").write_text("\n".join("".join(sentences[at : at + 20]) for at in range(40)), encoding="utf-8")
    before = found("check")["cost"]
    main(["check", "pairs.tsv", "--encoder", "micro", *words])
    record = found("check")
    assert record["cost"]["operations"] > 2 * before["operations"]
    assert record["cost"]["memory_bytes"] > 1.5 * before["memory_bytes"] and record["rows"]["untranslated"] == 40
    assert ("--encoder 'micro'", "sources") in {(one["by"], one["what"]) for one in record["tokens"]}
    main(["check", "pairs.tsv", *words[:4], "--untranslated", "micro"])
    assert found("check")["rows"]["untranslated"] > 1000


def test_what_cannot_work_ends_with_2_and_a_page(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write_text("zh\tbo\n一\tone\n二\ttwo\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", "--output", "out"])
    assert ended.value.code == 2
    assert "2 of 2 'bo' are not Tibetan by its letters; out/check.html shows which" in capsys.readouterr().err
    assert found("out")["findings"][0]["level"] == "refused"


def test_a_folder_of_somebody_elses_is_left_alone(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", "--output", str(rows.parent)])
    assert "which holds something else" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", "pairs.tsv", "--from", "zh", "--to", "bo", "--step.tflops", "0"])
    assert "step.tflops is 0" in capsys.readouterr().err
