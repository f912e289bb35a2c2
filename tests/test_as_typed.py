"""What is typed for a field of text arrives as it was typed, however deep the field lies."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from jsonargparse import ArgumentParser

from lsemrl.as_typed import take_text_as_typed
from lsemrl.cli.main import users_mistake
from lsemrl.commands.fit_language import Texts
from lsemrl.data.base import Data, TaskData
from lsemrl.data.text import PlainText
from lsemrl.data.translation import TranslationData
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.languages import Language
from lsemrl.rewards.base import Reward

TASK = "lsemrl.data.translation.TranslationData"
TEXTS = [
    "Note: answer in Tibetan only",
    "Translate: {source}",
    "[a]",
    "{a}",
    "{a: b}",
    "- a",
    "? a",
    "#x",
    "x #y",
    "1e5",
    "017",
    "true",
    "on",
    "2024-01-01",
    "1:30",
    ".nan",
    "*x",
    "&x",
    "!!x",
    '"x"',
    "'x'",
    "a: b\nc: d",
    " x ",
    "",
]


def parser_of_files() -> ArgumentParser:
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    return parser


def parse(*words: str) -> Any:
    parser = parser_of_files()
    parser.add_subclass_arguments(TaskData, "data")
    parser.add_class_arguments(TranslationData, "flat")
    parser.add_class_arguments(PlainText, "text")
    return parser.parse_args([f"--data={TASK}", *words])


@pytest.mark.parametrize("own", [int | float | None, float | int | None], ids=str)
def test_a_whole_number_stays_one(own: Any) -> None:
    parser = parser_of_files()
    parser.add_argument("--batches", type=own)
    for said, batches in {"1": 1, "-2": -2, "1.0": 1.0, "1e1": 10.0, "null": None}.items():
        for words in ([f"--batches={said}"], [f"--config=batches: {said}"]):
            found = parser.parse_args(words).batches
            assert (type(found), found) == (type(batches), batches), words


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_typed(text: str) -> None:
    names = ("template.system", "source_field", "source.columns.zh")
    words = [f"--{kind}.{name}={text}" for kind in ("data", "flat") for name in names]
    found = parse(*words, f"--text.column={text}")
    for data in (found.data.init_args, found.flat):
        assert (data.template.system, data.source_field, data.source.columns) == (text, text, {"zh": text})
        assert type(data.source_field) is type(data.source.columns["zh"]) is str
    assert found.text.column == text


def test_a_class_is_named_by_a_field_of_its_own_and_written_out() -> None:
    """It was kept as text that waits for its field, which YAML cannot write."""
    parser = parser_of_files()
    parser.add_subclass_arguments(Data, "data")
    mixed = ["--data.class_path=lsemrl.data.mixed.MixedData", f"--data.main.class_path={TASK}", "--data.main.seed=3"]
    whole = parser.parse_args([*mixed, f"--data.init_args.replay.class_path={TASK}", "--data.replay.source_field=a: b"])
    assert parser.parse_string(parser.dump(whole)) == whole
    named = [whole.data, whole.data.init_args.main, whole.data.init_args.replay]
    assert [(type(each.class_path), each.class_path.rpartition(".")[2]) for each in named] == [
        (str, "MixedData"),
        (str, "TranslationData"),
        (str, "TranslationData"),
    ]


@pytest.mark.parametrize(
    "kind", [str | TaskData, Literal["auto"] | TaskData | Iterable[TaskData], list[TaskData] | None]
)
def test_a_class_is_named_in_place_of_a_word_or_within_a_list(kind: Any) -> None:
    """As of trainer.strategy, trainer.logger and trainer.callbacks: what was there was taken for fields."""
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(
        "--one", type=kind, default=[{"class_path": TASK}] if list[TaskData] in get_args(kind) else "auto"
    )
    found = parser.parse_args([f"--one.class_path={TASK}", "--one.source_field=ab"])
    (one,) = found.one if isinstance(found.one, list) else [found.one]
    assert (one.class_path, one.init_args.source_field) == (TASK, "ab") and TASK in parser.dump(found)


def test_null_is_none_and_groups_are_read_at_once() -> None:
    words = ["--data.template.system=x", "--data.template.system=null", "--data.validation={path: a}"]
    data = parse(*words, "--data.micro={train: 20}", "--data.source.columns={zh: a}", "--data.source.columns.bo=b").data
    assert data.init_args.template.system is None and data.init_args.micro.train == 20
    assert data.init_args.source.columns == {"zh": "a", "bo": "b"} and data.init_args.validation.path == "a"
    assert parse("--data.validation.path=a", "--data.validation=null").data.init_args.validation is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("target_rows: null", "target_rows: Expected a int. Got value: null"),
        ("policy: {model: null}", "policy.model: Expected a str. Got value: null"),
        ("metrics: {names: null}", "metrics.names: Expected a tuple. Got value: null"),
        (f"target: {{class_path: {TASK}, init_args: {{batch_size: null}}}}", "target.batch_size: Expected a int. Got"),
    ],
)
def test_null_in_a_file_is_refused_where_the_field_takes_none(text: str, says: str, tmp_path: Path) -> None:
    """The parser lets it pass, and whatever compared it with a number ended in a traceback."""
    parser = parser_of_files()
    parser.add_class_arguments(MeasureSettings)
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ArgumentError) as refused:
        parser.parse_args([f"--config={tmp_path / 'own.yaml'}"])
    assert says in str(users_mistake(refused.value))
    (tmp_path / "own.yaml").write_text("general: null\nbase: null\ndivergence_rows: null", encoding="utf-8")
    found = parser.parse_args([f"--config={tmp_path / 'own.yaml'}", f"--target={TASK}"])
    assert (found.general, found.base, found.divergence_rows) == (None, None, None)


def test_null_deep_within_a_class_of_settings() -> None:
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MeasureSettings)
    words = [f"--target={TASK}", "--general=lsemrl.data.comprehension.ComprehensionData", "--policy.adapter=null"]
    found = parser.parse_args([*words, "--target.validation.skipped_path=null"])
    assert found.target.init_args.validation.skipped_path is None and found.policy.adapter is None


@pytest.mark.parametrize("name", ["general_label", "policy.model", "target.source.split", "folder"])
def test_null_on_the_line_is_refused_where_a_text_is_meant(name: str) -> None:
    """As in a file: a report had a column that was called null."""
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MeasureSettings)
    parser.add_argument("--folder", type=Path)
    with pytest.raises(ArgumentError) as refused:
        parser.parse_args([f"--target={TASK}", f"--{name}=null"])
    assert str(users_mistake(refused.value)).startswith(f"{name}: Expected a str. Got value: null; give a value, or ")


@pytest.mark.parametrize("value", ["{Note: x}", "[[a]]", "on", "5", "1.5"])
@pytest.mark.parametrize(
    "field", ["template: {system: VALUE}", "source: {columns: {zh: VALUE}}", "source_field: VALUE"]
)
def test_yaml_that_is_no_text_is_refused_where_text_is_meant(value: str, field: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"data: {{class_path: {TASK}, init_args: {{{field.replace('VALUE', value)}}}}}\n")
    with pytest.raises(Exception) as error:
        parse(f"--config={tmp_path / 'a.yaml'}")
    assert "in quotes" in (users_mistake(error.value) or "")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("data.source=pairs.jsonl", "data.source: 'pairs.jsonl' is neither"),
        ("data.source=ROWS", "one by one, --data.source.path ROWS; "),
        ("data.source=[a.jsonl, b.jsonl]", "--data.source.path VALUE; rows of several files are a MixedData"),
        ("flat.source=[a.jsonl, b.jsonl]", "--flat.source.path VALUE; lsemrl"),
        ("data.source=3", "--data.source.path 3; "),
        ("data.validation=ROWS", "--data.validation.path ROWS; "),
        ("data.template=Say: {source}", "--data.template.template 'Say: {source}'; "),
        ("flat.template=Say: {source}", "--flat.template.template 'Say: {source}'; "),
        ("data.template={tmplate: x}", "does not accept option 'tmplate'"),
        ("data.splits=[1, 2]", "--data.splits.validation_fraction VALUE; "),
        ("data=ROWS", "--data.FIELD VALUE; "),
        ("data=no_such_module.Rows", "there is no module 'no_such_module'"),
    ],
)
def test_what_stands_in_place_of_fields_is_told_with_the_field_that_was_meant(
    word: str, sentence: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"zh": "a"}\n{"zh": "b"}\n')
    with pytest.raises(ArgumentError) as error:
        parse(f"--{word.replace('ROWS', str(rows))}")
    assert sentence.replace("ROWS", str(rows)) in (users_mistake(error.value) or "")


@pytest.mark.parametrize("value", ["[pairs.jsonl, dev.jsonl]", "pairs.jsonl", "null", "3"])
def test_a_file_with_something_else_in_place_of_fields(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"data: {{class_path: {TASK}, init_args: {{source: {value}}}}}\n")
    with pytest.raises(ArgumentError) as error:
        parse(f"--config={tmp_path / 'a.yaml'}")
    assert "give the fields one by one, --data.source.path" in (users_mistake(error.value) or "")


def test_a_large_file_is_not_read_as_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus := tmp_path / "corpus.txt").write_text("{path: a.txt}")
    monkeypatch.setattr("lsemrl.as_typed._LARGEST", 5)
    with pytest.raises(ArgumentError) as told:
        parse(f"--data.source={corpus}")
    assert "is neither a file of its fields nor a class" in (users_mistake(told.value) or "")


@pytest.mark.parametrize("hint", [str | Language, Language | str, Language | None, str | None | Language], ids=str)
def test_a_mistake_in_a_member_of_a_union_is_told(hint: Any, tmp_path: Path) -> None:
    parser = parser_of_files()
    parser.add_argument("--language", type=hint)
    for said, sentence in {
        "threshold: 2": "language.threshold is 2.0",
        "treshold: 1": "the nearest is threshold",
        "foo: 1": "'foo' is not accepted (there are code, name, scripts, threshold, unit, identifier)",
    }.items():
        (tmp_path / "a.yaml").write_text(f"language: {{code: pcm, {said}}}\n")
        for word in (f"--config={tmp_path / 'a.yaml'}", f"--language={{code: pcm, {said}}}"):
            with pytest.raises((ArgumentError, ValueError)) as error:
                parser.instantiate_classes(parser.parse_args([word]))
            assert sentence in (users_mistake(error.value) or ""), word


def test_a_text_beside_a_group_stays_one() -> None:
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--language", type=str | Language)
    for text in ("pcm", "a: b", "[code]", "pcm.yaml"):
        assert parser.parse_args([f"--language={text}"]).language == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_path_arrives_as_typed(text: str) -> None:
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--root", type=str | Path | None)
    parser.add_argument("--folder", type=Path | None)
    found = parser.parse_args([f"--root={text}", f"--folder={text}"])
    assert (found.root, found.folder) == (text, Path(text))
    assert parser.parse_args(["--root=null", "--folder=null"]).as_dict() == {"root": None, "folder": None}


def test_the_beginning_of_a_name_is_not_taken_for_the_name() -> None:
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--beta", type=float)
    assert parser.parse_args(["--beta=1"]).beta == 1
    with pytest.raises(ArgumentError, match=r"--bet=1 \(the nearest is beta\)"):
        parser.parse_args(["--bet=1"])


class TestADictionaryOfGroups:
    """Such as `texts` of fit-language."""

    @staticmethod
    def read(*words: str) -> Any:
        take_text_as_typed()
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_argument("--texts", type=dict[str, Texts])
        parser.add_argument("--rewards", type=dict[str, Reward])
        return parser.parse_args(list(words))

    def test_its_fields_are_given_one_by_one(self) -> None:
        begun = ["--texts.pcm.path=a: b.txt", "--texts.pcm.column=1", "--texts.en={path: e.txt}"]

        texts = self.read(*begun, "--texts.pcm.path", "c", "--texts.en.header=false").texts

        assert (texts["pcm"].path, texts["pcm"].column, texts["pcm"].header) == ("c", "1", True)
        assert (texts["en"].path, texts["en"].column, texts["en"].header) == ("e.txt", "text", False)

    def test_one_field_of_a_file_is_replaced(self, tmp_path: Path) -> None:
        config = tmp_path / "language.yaml"
        config.write_text("texts: {pcm: {path: a.txt, column: said}, en: {path: b.txt}}")

        texts = self.read(f"--config={config}", "--texts.pcm.path=c.txt").texts

        assert (texts["pcm"].path, texts["pcm"].column, texts["en"].path) == ("c.txt", "said", "b.txt")

    @pytest.mark.parametrize(
        "words", ["--texts.pcm=a.txt", "--texts={pcm: a.txt}", "--texts={en: {path: b}, pcm: a.txt}"]
    )
    def test_what_stands_in_place_of_one_is_told(self, words: str) -> None:
        with pytest.raises(ArgumentError) as told:
            self.read(words)

        assert users_mistake(told.value, "fit-language") == (
            "texts.pcm: 'a.txt' is neither a file of its fields nor a class; give the fields one by one, "
            "--texts.pcm.path a.txt; lsemrl fit-language --help lists every option"
        )

    def test_all_fields_of_one_from_a_file(self, tmp_path: Path) -> None:
        fields = tmp_path / "pcm.yaml"
        fields.write_text("{path: a.txt, column: said}")

        texts = self.read(f"--texts.pcm={fields}", "--texts.pcm.path=b.txt").texts

        assert (texts["pcm"].path, texts["pcm"].column) == ("b.txt", "said")

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (
                "--texts.pcm=null",
                "texts.pcm: 'null' is neither a file of its fields nor a class; give the fields one by",
            ),
            ("--texts={pcm: null}", "texts.pcm: null is neither .*, --texts.pcm.path VALUE; "),
            (
                "--texts={no: {path: a.txt}}",
                "texts: Expected a str as a name. Got value: False; put text that YAML reads",
            ),
            ("--rewards={12: lsemrl.rewards.Chrf}", "rewards: Expected a str as a name. Got value: 12; put text"),
            ("--rewards.chfr.init_args.weight=2", r"rewards: chfr has no class yet, .* \(the nearest is chrf\)"),
            ("--rewards.a.weight=2", r"rewards: a has no class yet, and so no fields \(there are chrf\)"),
        ],
    )
    def test_a_name_or_a_group_that_is_none(self, words: str, sentence: str, tmp_path: Path) -> None:
        config = tmp_path / "rewards.yaml"
        config.write_text("rewards: {chrf: {class_path: lsemrl.rewards.Chrf}}")

        with pytest.raises(ArgumentError) as told:
            self.read(f"--config={config}", words)

        assert re.match(sentence, users_mistake(told.value) or "")

    def test_a_reward_is_added_by_its_class_and_fields(self) -> None:
        words = ["--rewards.chrf.class_path=lsemrl.rewards.Chrf", "--rewards.chrf.init_args.weight=2"]
        assert self.read(*words).rewards["chrf"].init_args.weight == 2
        assert set(self.read(*words, "--rewards.length=lsemrl.rewards.Length").rewards) == {"chrf", "length"}

    @pytest.mark.parametrize("given", ["a.txt", "{pcm: ", "3"])
    def test_no_dictionary(self, given: str) -> None:
        with pytest.raises(ArgumentError, match="texts"):
            self.read("--texts", given)
