"""A project that lsemrl writes for a user's rows runs as it stands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import ArgumentParser
from transformers import AutoTokenizer

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands.init import FILES, init
from lsemrl.commands.lengths import limits_of
from lsemrl.commands.rendered import _as_yaml
from lsemrl.commands.task_rows import columns_of_task, renamed, task_of, unread, untranslated_of
from lsemrl.commands.wordings import stand_ins
from lsemrl.config_files import CONFIGS
from lsemrl.data.base import TaskData
from lsemrl.data.limits import Limits
from lsemrl.data.prepared import prepare
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.survey import survey
from lsemrl.data.task import read_splits
from lsemrl.data.text import PlainText, read_texts
from lsemrl.data.translation import TranslationData
from lsemrl.experiment.read import read_experiment
from lsemrl.languages import Language
from lsemrl.micro import corpus
from lsemrl.types import UserError
from two_languages import sentences


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    rows = corpus.translation("train", 240, 0)
    text = "chinese\ttibetan\n" + "".join(f"{row['zh']}\t{row['bo']}\n" for row in rows)
    Path("pairs.tsv").write_text(text, encoding="utf-8")
    return "pairs.tsv"


def fields(name: str) -> dict:
    return yaml.safe_load((Path("project") / name).read_text(encoding="utf-8"))


def _module(own: dict) -> TranslationData:
    """Of the fields that a configuration gives."""
    kinds = {"splits": Splits, "limits": Limits, "source": Source, "untranslated": Source}
    typed = {name: kinds[name](**value) if name in kinds else value for name, value in own.items()}
    return TranslationData(**typed)


def test_what_it_writes_can_be_planned(pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", pairs, "--from", "zh", "--to", "bo", "--output", "project"])
    said = capsys.readouterr().out
    assert "240 rows, 0 of them another again; from chinese (100% Han) to tibetan (100% Tibetan)" in said
    assert sorted(path.name for path in Path("project").iterdir()) == sorted(FILES)
    [line] = stand_ins("micro", "micro")
    assert f"\n{line}\n" in said and f"\n\n{line}\n\n" in Path("project/README.md").read_text(encoding="utf-8")
    assert "for the encoder: it" in stand_ins("own", "micro")[0] and not stand_ins("own", "own")
    main(["experiment", "--config", "project/experiment.yaml", "--dry-run"])
    assert "to run: 6 of 6" in capsys.readouterr().out


def test_a_name_in_place_of_a_code_is_told(pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", pairs, "--from", "zh", "--to", "tibetan", "--output", "project"])
    said = capsys.readouterr().out
    assert said.count("no code of a language") == 1
    assert "warning: 'tibetan' is no code of a language (that of tibetan is bo), so that nothing is known of it" in said


def test_a_file_may_have_any_name(pairs: str) -> None:
    name = Path(pairs).rename("news: 'v2' #1.tsv").name
    main(["init", name, "--from", "zh", "--to", "bo", "--output", "project"])
    assert read_experiment(Path("project/experiment.yaml"), CONFIGS).description == (
        f"Rehearsal, cold start and RL on {name}, each measured against the base."
    )
    assert fields("rl.yaml")["data"]["init_args"]["source"]["path"] == name


@pytest.mark.usefixtures("no_plots")
@pytest.mark.slow
def test_what_it_writes_trains_measures_and_reports_as_it_stands(
    pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["init", pairs, "--from", "zh", "--to", "bo", "--output", "project"])
    said = capsys.readouterr().out
    commands = [line.split()[1:] for line in said.splitlines() if line.startswith("lsemrl ")]
    quick = ["--trainer.max_steps=1", "--trainer.max_epochs=-1", "--trainer.accelerator=cpu"]
    for words in commands:
        small = {
            "fit": quick,
            "measure": ["--target_rows=4", "--general_rows=4", "--device=cpu", "--max_new_tokens=8"],
            "tax": [],
        }
        small["rehearse"] = ["--rows=24", "--batch-size=32", "--max-new-tokens=24"]
        main([*words, *small[words[0]]])
    assert (Path("project") / "report" / "report.html").is_file()


def test_what_is_to_be_run_can_be_pasted(pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", pairs, "--from", "zh", "--to", "bo", "--output", "my project"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lsemrl ")]
    assert ["lsemrl", "fit", "--config", "my project/rl.yaml"] in map(shlex.split, lines)
    assert "lsemrl experiment --config 'my project'/experiment.yaml" in Path("my project/README.md").read_text()


def test_what_check_holds_out_is_what_the_project_holds_out(pairs: str) -> None:
    main(["check", pairs, "--from", "zh", "--to", "bo"])
    looked_at = json.loads(Path("check/check.json").read_text(encoding="utf-8"))["rows"]
    init(pairs, to="bo", output=Path("project"), from_="zh")
    data = fields("measure.yaml")["target"]["init_args"]
    module = TranslationData(
        source=Source(**data["source"]), splits=Splits(**data["splits"]), source_field="zh", target_field="bo"
    )
    assert {name: len(rows) for name, rows in read_splits(module.plan)[0].items()} == looked_at


def test_values_are_of_these_rows(pairs: str) -> None:
    init(pairs, to="bo", output=Path("project"), from_="zh")
    data, model = fields("rl.yaml")["data"]["init_args"], fields("rl.yaml")["model"]["init_args"]
    assert data["source"] == {
        "path": "pairs.tsv",
        "columns": {"zh": "chinese", "bo": "tibetan"},
        "on_bad_row": "skip",
    }
    cold_start = fields("cold_start.yaml")["data"]["init_args"]["splits"]
    assert data["splits"] == {**cold_start, "part": "rl"}
    assert 16 <= data["limits"]["max_target_tokens"] <= 32
    assert model["sampling"]["max_new_tokens"] == data["limits"]["max_target_tokens"]
    assert "template" not in data  # the task's own wording
    assert model["rewards"].keys() == {"similarity", "language"}  # letters tell a copy


@pytest.mark.parametrize("task", ["translation", "headline"])
def test_what_the_limits_touch_is_said_as_fit_says_it(
    task: Literal["translation", "headline"], pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[row["zh"], row["bo"]] for row in corpus.translation("train", 480, 0)]
    rows[8][1] *= 20  # of more than 200 rows the longest is left out
    for row in rows[20::9] if task == "headline" else ():
        row[0] *= 80
    lines = ["chinese\ttibetan", *map("\t".join, rows), ""]
    Path(pairs).write_text("\n".join(lines), encoding="utf-8")
    columns = {"source_column": "chinese", "target_column": "tibetan"}
    init(pairs, to="bo", output=Path("project"), from_="zh", task=task, **columns)
    said = [line for line in capsys.readouterr().out.splitlines() if " targets over " in line]
    data = fields("rl.yaml")["data"]
    data["init_args"]["splits"]["part"] = "all"
    parser = ArgumentParser()
    parser.add_subclass_arguments(TaskData, "data")
    read = parser.instantiate_classes(parser.parse_object({"data": data})).data
    told = read.prepare(AutoTokenizer.from_pretrained(micro.POLICY))
    assert said == [line for line in told if " targets over " in line] and len(said) == 3
    assert "1 targets over" in said[0] and "skipped" in said[0] and ("truncated" in said[0]) == (task == "headline")


def test_what_rl_trains_on_is_counted_as_fit_counts_it(pairs: str) -> None:
    rows = [[row["zh"], row["bo"]] for row in corpus.translation("train", 101, 0)]
    many = [*rows[:60], *[rows[100]] * 40]  # equal rows go to one part
    many[::9] = [[source, target * 20] for source, target in many[::9]]  # longer than what is trained on
    Path(pairs).write_text("\n".join(["chinese\ttibetan", *map("\t".join, many), ""]), encoding="utf-8")
    init(pairs, to="bo", output=Path("project"), from_="zh")
    data, tokenizer = fields("rl.yaml")["data"]["init_args"], AutoTokenizer.from_pretrained(micro.POLICY)
    kept = len(prepare(_module(data).plan, tokenizer).train)
    assert f", {kept} for RL, " in Path("project/rl.yaml").read_text(encoding="utf-8")
    assert 1 <= fields("rl.yaml")["trainer"]["val_check_interval"] <= kept // data["batch_size"]


@pytest.mark.parametrize(
    ("lengths", "bound", "limits"),
    [
        ([(20, 10)] * 99 + [(900, 10)], None, (128, 16)),  # one odd row of few
        ([(20, 10)] * 99 + [(20, 900)], None, (64, 48)),
        ([(20, 10)] * 99 + [(60, 30)], None, (64, 32)),
        ([(20, 10)] * 100, 50, (34, 16)),
        ([(20, 90)] * 100, 64, (32, 32)),
        ([(20, 300)] * 100, 256, (64, 192)),  # short prompts leave more to outputs
    ],
)
def test_limits_hold_what_is_usual_and_can_be_read(
    lengths: list[tuple[int, int]], bound: int | None, limits: tuple[int, int]
) -> None:
    found = limits_of(lengths, cut=False, bound=bound)
    assert (found.max_prompt_tokens, found.max_target_tokens) == limits


def test_a_bad_row_is_left_out_of_all_that_is_written(pairs: str, tiny_model: str) -> None:
    with Path(pairs).open("a", encoding="utf-8") as file:
        file.write("one column only\n")
    init(pairs, to="bo", output=Path("project"), from_="zh", model=tiny_model)
    with pytest.warns(UserWarning, match="1 of 241 rows of pairs.tsv have no text in 'chinese' and are left out"):
        assert PlainText(**fields("measure.yaml")["text"]).examples()


def test_without_an_encoder_letters_are_rewarded(pairs: str, tiny_model: str) -> None:
    words = ["--from=zh", "--to=bo", f"--model={tiny_model}", "--encoder=none"]
    main(["init", pairs, *words, "--output=project"])
    own = fields("rl.yaml")["model"]["init_args"]
    assert list(own["rewards"]) == ["chrf", "language"]
    assert fields("measure.yaml")["metrics"] == {
        "names": ["chrf", "bleu", "rouge_l", "language_rate"],
        "language": "bo",
    }
    assert (own["optimizer"]["lr"], fields("cold_start.yaml")["model"]["init_args"]["optimizer"]["lr"]) == (1e-4, 1e-3)
    assert len([*read_experiment(Path("project/experiment.yaml"), CONFIGS).runs()]) == 6
    with pytest.raises(UserError, match="rewarded by an encoder that knows both languages; name one"):
        init(pairs, to="bo", output=Path("other"), from_="zh", encoder="none", untranslated=pairs)


def test_an_identifier_is_fitted_without_the_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = zip(sentences("en", 120), sentences("pcm", 120), strict=True)
    lines = [json.dumps({"en": en, "pcm": [pcm, en]}) for en, pcm in rows]  # several accepted ones
    Path("pairs.jsonl").write_text("\n".join([*lines, '{"en": null, "pcm": "x"}', "{"]), encoding="utf-8")
    init("pairs.jsonl", to="pcm", output=Path("project"), from_="en")
    texts = fields("language.yaml")["texts"]
    with pytest.warns(UserWarning, match="have no text in"):
        assert {name: len(read_texts(**where)) for name, where in texts.items()} == {"en": 120, "pcm": 121}


def test_held_out_files_and_questions_of_ones_own(pairs: str, tiny_model: str) -> None:
    """English questions are not asked in Chinese, and what is held out already is not held out again."""
    header, *rows = Path(pairs).read_text(encoding="utf-8").splitlines()
    for name, part in (("train", rows[:200]), ("dev", rows[200:210]), ("test", rows[210:])):
        Path(f"{name}.tsv").write_text("\n".join([header, *part, ""]), encoding="utf-8")
    question = {"question": "Who crossed the river in the night?", "answers": ["the soldiers"], "id": "1"}
    passage = {"context": "In the night the soldiers crossed the river near the old mill.", "qas": [question]}
    Path("questions.json").write_text(json.dumps({"data": [{"paragraphs": [passage]}]}), encoding="utf-8")
    words = ["--from=zh", "--to=bo", "--general=questions.json"]
    main(["init", "train.tsv", *words, "--output=trial"])
    words += [f"--model={tiny_model}", "--output=project", "--validation=dev.tsv", "--test=test.tsv"]
    main(["init", "train.tsv", *words])
    data, measured = fields("rl.yaml")["data"]["init_args"], fields("measure.yaml")
    for rows_of in (data, measured["target"]["init_args"]):
        assert (rows_of["validation"]["path"], rows_of["test"]["path"]) == ("dev.tsv", "test.tsv")
        assert rows_of["validation"]["columns"] == rows_of["source"]["columns"] == {"zh": "chinese", "bo": "tibetan"}
        assert rows_of["splits"]["validation_fraction"] == rows_of["splits"]["test_fraction"] == 0
    assert measured["target_rows"] == 30 and measured["text"] == {
        "path": "test.tsv",
        "column": "chinese",
        "on_bad_row": "skip",
    }
    template = {"template": "{context}\nQuestion: {question}"}
    for asked in (measured, yaml.safe_load(Path("trial/measure.yaml").read_text(encoding="utf-8"))):
        questions = asked["general"]["init_args"]  # also where the embedded model stands in for another
        assert questions["template"] == template and questions["splits"]["test_fraction"] == 0.9


@pytest.mark.parametrize("name", ["mono.txt", "mono.tsv"])
def test_sentences_without_a_translation_are_what_rl_trains_on(
    name: str, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [row["zh"] for row in corpus.translation("train", 300, 0)][240:]
    Path(name).write_text("\n".join([*["chinese"] * name.endswith(".tsv"), *alone, ""]), encoding="utf-8")
    words = ["--from=zh", "--to=bo", "--output=project", f"--untranslated={name}"]
    main(["init", pairs, *words])
    data = {stage: fields(f"{stage}.yaml")["data"]["init_args"] for stage in ("cold_start", "rl")}
    assert data["rl"]["untranslated"]["path"] == name and "untranslated" not in data["cold_start"]
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    trained = {stage: prepare(_module(own).plan, tokenizer).train for stage, own in data.items()}
    assert {example.source for example in trained["rl"]} == set(alone)
    assert len(trained["cold_start"]) > 150  # all pairs but those held out
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "project/rl.yaml", "--print_config"])
    assert exit_.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["gate"] == "language" and model["rewards"]["similarity"]["init_args"]["against"] == "source"


@pytest.mark.parametrize(("header", "columns"), [("", {"zh": "2"}), ("text\n", {"zh": "text"}), ("zh\n", {})])
def test_sentences_have_whatever_column_they_are_in(header: str, columns: dict, pairs: str) -> None:
    rows = corpus.translation("train", 300, 0)
    lines = [row["zh"] if header else f"{row['bo']}\t{row['zh']}" for row in rows]
    Path("mono.tsv").write_text(header + "\n".join(lines), encoding="utf-8")
    source = untranslated_of("mono.tsv", "zh", "chinese")
    assert (source.columns, source.header) == (columns, bool(header))


def test_sentences_may_have_a_column_in_their_own_letters(tmp_path: Path) -> None:
    mono = tmp_path / "mono.csv"
    rows = [row["zh"] for row in corpus.translation("train", 9, 0)]
    mono.write_text("\n".join(["中文", *rows]), encoding="utf-8")
    assert untranslated_of(str(mono), "zh", "chinese").columns == {"zh": "中文"}  # what Chinese is called
    mono.write_text("\n".join(["句子", *rows]), encoding="utf-8")
    assert untranslated_of(str(mono), "zh", "句子").columns == {"zh": "句子"}  # as the pairs have it
    with pytest.raises(UserError, match=r"if it is a row, put a line such as column_1 before it; .* give a text file"):
        untranslated_of(str(mono), "zh", "chinese")


@pytest.mark.parametrize("text", ["a\nb", "=", "2024-13-01", "no", "翻译", "a: b", " a", "- x", "\t", "", "it's", "%x"])
def test_any_text_is_written_as_yaml_reads_it(text: str) -> None:
    assert yaml.safe_load(f"k: [{_as_yaml(text)}]")["k"] == [text]


@pytest.mark.parametrize(
    ("code", "written"),
    [
        ("dz", "dz"),
        ("kk", {"code": "kk", "name": "Kazakh", "scripts": ["Tibetan"], "threshold": 0.8, "unit": "syllable"}),
    ],
)
def test_a_language_is_named_by_its_tag_where_that_says_all(code: str, written: object, pairs: str) -> None:
    text = Path(pairs).read_text(encoding="utf-8").replace("tibetan", code, 1)
    Path(pairs).write_text(text, encoding="utf-8")
    init(pairs, to=code, output=Path("project"), from_="zh")
    model = fields("rl.yaml")["model"]["init_args"]
    assert model["metrics"]["language"] == model["rewards"]["language"]["init_args"]["language"] == written


def test_a_prompt_is_worded_in_the_language_asked_from(pairs: str) -> None:
    text = Path(pairs).read_text(encoding="utf-8").replace("tibetan", "dz", 1)
    Path(pairs).write_text(text, encoding="utf-8")
    init(pairs, to="dz", output=Path("project"), from_="zh")
    assert fields("rl.yaml")["data"]["init_args"]["template"] == {"template": "翻译成宗卡语：{source}"}


def test_where_letters_are_shared_copies_of_untranslated_sentences_are_shut_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = zip(sentences("en", 120), sentences("pcm", 120), strict=True)
    Path("pairs.jsonl").write_text("\n".join(json.dumps({"en": en, "pcm": pcm}) for en, pcm in rows), encoding="utf-8")
    Path("mono.txt").write_text("\n".join(sentences("en", 60, seed=9)), encoding="utf-8")
    init("pairs.jsonl", to="pcm", output=Path("project"), from_="en", untranslated="mono.txt")
    own = fields("rl.yaml")["model"]["init_args"]
    assert own["gate"] == ["language", "copy"] and own["rewards"]["copy"]["init_args"] == {"weight": 0.0}


def test_too_few_texts_for_an_identifier_are_told_before_it_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = zip(sentences("en", 110), sentences("pcm", 70), strict=False)
    rows = [json.dumps({"en": en, "pcm": pcm}) for en, pcm in pairs]
    Path("pairs.jsonl").write_text("\n".join([*rows, *rows]), encoding="utf-8")
    init("pairs.jsonl", to="pcm", output=Path("project"), from_="en")
    said = capsys.readouterr().out
    assert "warning: lsemrl fit-language wants 100 different texts of each language" in said
    assert "there are 70 of en and 70 of pcm; name a file with more in project/language.yaml" in said
    with pytest.raises(SystemExit):  # as was said
        main(["fit-language", "--config", "project/language.yaml"])
    assert "70 different texts" in capsys.readouterr().err


@pytest.mark.slow
def test_a_language_in_the_script_of_its_source_gets_an_identifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = zip(sentences("en", 240), sentences("pcm", 240), strict=True)
    rows = (json.dumps({"translation": {"en": en, "pcm": pcm}}) for en, pcm in pairs)
    Path("pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    main(["init", "pairs.jsonl", "--from", "en", "--to", "pcm", "--output", "project"])
    said = capsys.readouterr().out
    assert "The source is in the same letters" in said
    [first, *_] = [line.split()[1:] for line in said.splitlines() if line.startswith("lsemrl ")]
    assert first == ["fit-language", "--config", "project/language.yaml"]
    main(first)
    settings = fields("rl.yaml")["model"]["init_args"]
    profile = {"code": "pcm", "identifier": "project/language"}
    assert settings["metrics"]["language"] == settings["rewards"]["language"]["init_args"]["language"] == profile
    assert settings["rewards"]["copy"]["class_path"] == "lsemrl.rewards.CopyOfSource"
    assert Language(**profile).accepts(sentences("pcm", 1, seed=1)[0])
    experiment = read_experiment(Path("project/experiment.yaml"), CONFIGS)
    language, rl = (next(run for run in experiment.runs() if run.stage.name == name) for name in ("language", "rl"))
    main([*language.command])
    found = f"{language.folder}/identifier"
    given = [word.partition("=")[0] for word in rl.command if word.endswith(found)]
    assert Path(found).is_dir() and given == [
        "--model.metrics.language.identifier",
        "--model.rewards.language.init_args.language.identifier",
    ]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*rl.command, "--print_config"])
    assert capsys.readouterr().out.count(f"identifier: {found}") == 2


@pytest.mark.parametrize(
    ("names", "task", "from_", "expected"),
    [
        (("title", "content"), None, None, "headline"),
        (("prompt", "response"), None, None, "instruction"),
        (("messages.user", "messages.assistant"), None, None, "instruction"),
        (("title", "content"), None, "zh", "translation"),
        (("title", "content"), "translation", None, "translation"),
        (("zh", "bo"), None, None, "translation"),
        (("content", "bo"), None, None, "translation"),
    ],
)
def test_columns_say_what_is_learned_where_nobody_does(
    names: tuple[str, ...], task: Any, from_: str | None, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(dict.fromkeys(names, "text")) + "\n")
    assert task_of(survey(Source(path=str(file))), task, from_) == expected


def test_an_instruction_is_read_with_its_input_and_what_is_not_read_is_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "instruction": "Say it", "input": "two", "output": "tu", "text": "all of it"},
        {"id": "b", "instruction": "Say three", "input": "", "output": "tri", "text": "all of it"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = survey(Source(path=str(file)))
    columns = columns_of_task(found, "instruction", "", "pcm", None, None)
    assert renamed(columns) == {"prompt": ["instruction", "input"], "response": "output"}
    assert unread(found, columns) == "Columns that are not read: 'text' (2 rows)"
    alone = columns_of_task(found, "instruction", "", "pcm", "instruction", None)
    assert renamed(alone) == {"prompt": "instruction", "response": "output"} and "'input' (1 rows)" in unread(
        found, alone
    )
    file.write_text(
        json.dumps({"messages": [{"role": name, "content": "a"} for name in ("system", "user", "assistant")]})
    )
    found = survey(Source(path=str(file)))
    assert not unread(found, columns_of_task(found, "instruction", "", "pcm", None, None))


def test_a_model_that_is_taught_no_translation_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = map(json.dumps, corpus.instruction("train", 120, 0))
    Path("rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    init("rows.jsonl", to="zh", output=Path("project"), model=tiny_model)
    written = {name: fields(name) for name in FILES if name.endswith(".yaml")}  # "null" had ended the document
    assert written["measure.yaml"]["text"] is None and written["measure.yaml"]["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["headline", "instruction"])
def test_headlines_and_instructions(task: str, pairs: str) -> None:
    rows = corpus.headline("train", 120, 0) if task == "headline" else corpus.instruction("train", 120, 0)
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    init("rows.jsonl", to="bo" if task == "headline" else "zh", output=Path("project"))  # the columns say which
    title = {"headline": "# Headlines in Tibetan", "instruction": "# Instructions in Chinese"}[task]
    assert Path("project/README.md").read_text(encoding="utf-8").startswith(title)
    quick = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--checkpoints.monitor=null"]
    main(["rehearse", "--config", "project/rehearse.yaml", "--rows", "24", "--batch-size", "16"])
    main(["fit", "--config", "project/cold_start.yaml", *quick])
    assert Path("project/runs/cold_start/version_0/adapter").is_dir()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"from_": None}, "--from is not given; name .* give --task headline or instruction"),
        ({"from_": "bo"}, "--from and --to are both 'bo'; name two, or give --task"),
        ({"file": "nope.tsv"}, "no such file"),
        ({"to": "xx"}, "which column holds 'xx' cannot be told"),
        ({"output": Path(".")}, "--output is '.', which holds something already"),
        ({"model": "nope"}, "policy.model is 'nope'"),
        ({"encoder": "./nope"}, "encoder is './nope', and there is no such folder"),
        ({"untranslated": "nope.txt"}, "path is 'nope.txt', and there is no such file"),
        ({"untranslated": "one.txt"}, r"--untranslated is 'one.txt', of which 1 can be used .* give 40 or more"),
        ({"untranslated": "long.txt"}, r"of which 0 can be used \(zh-bo/untranslated: .* 50 prompts over 64 tokens"),
        ({"untranslated": "bo.txt"}, r"'bo.txt': without a translation: 50 of 50 'zh' are not Chinese by its letters"),
        ({"untranslated": "one.txt", "task": "headline"}, "--untranslated is 'one.txt', but the task is headline"),
        (
            {"file": "same.tsv"},
            r"leaves 60 rows to train on \(59 of them another again\) and 0 to test on; give a file",
        ),
        ({"file": "empty.tsv"}, r"to test on, for 60 cannot be used, as 'empty.tsv.skipped.jsonl' says; give a file"),
        ({"task": "headline"}, "which column holds the content cannot be told; give --source-column, one of: chinese"),
        (
            {"task": "headline", "source_column": "body"},
            "--source-column is 'body', and there is no such column; give one of: chinese",
        ),
        (
            {"task": "headline", "source_column": "chinese", "target_column": "chinese"},
            r"--target-column is 'chinese', and there is no such column; give one of: tibetan \(.*\); if the first "
            "line is a row, put a line with names before it",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(change: dict, says: str, pairs: str) -> None:
    rows = corpus.translation("train", 100, 0)
    for name, lines in (
        ("one", ["老师买了书"]),
        ("long", ["".join(row["zh"] for row in rows[at : at + 20]) for at in range(50)]),
        ("bo", [row["bo"] for row in rows[:50]]),
    ):
        Path(f"{name}.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    half = "".join(f"{row['zh']}\t{row['bo'] if at % 3 == 0 else ''}\n" for at, row in enumerate(rows[:90]))
    Path("empty.tsv").write_text(f"zh\tbo\n{half}", encoding="utf-8")
    Path("same.tsv").write_text("zh\tbo\n" + f"{rows[0]['zh']}\t{rows[0]['bo']}\n" * 60, encoding="utf-8")
    settings = {"file": pairs, "to": "bo", "output": Path("project"), "from_": "zh", **change}
    with pytest.raises(UserError, match=says):
        init(**settings)
    assert not Path("project").exists()


def test_what_is_missing_is_asked_at_a_terminal(
    pairs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["zh", "", "bo", "", "", ""])  # an empty line asks again where there is no default
    asked: list[str] = []

    def read(question: str) -> str:
        asked.append(question)
        return next(typed)

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, close=lambda: None))
    monkeypatch.setattr("builtins.input", read)
    init(pairs)
    assert "240 rows with the columns chinese (100% Han); tibetan (100% Tibetan)" in capsys.readouterr().out
    assert [question.split(",")[0].split(" [")[0] for question in asked] == [
        "the language that is translated from",
        "the language that is to be learned",
        "the language that is to be learned",
        "a new folder for the project",
        "the policy",
        "the reward's sentence encoder",
    ]
    assert fields("rl.yaml")["model"]["init_args"]["policy"]["model"] == "micro"


@pytest.mark.parametrize("option", ["--to", "--output"])
def test_what_is_missing_is_refused_where_nobody_can_be_asked(
    option: str, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--from": "zh", "--to": "bo", "--output": "project"}
    del words[option]
    with pytest.raises(SystemExit):
        main(["init", pairs, *(word for pair in words.items() for word in pair)])
    assert f"{option} is not given; name " in capsys.readouterr().err
