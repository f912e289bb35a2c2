"""Each thing that can be wrong with rows is found in rows that have it, and not in those that have not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from lsemrl.data import inspection
from lsemrl.data.findings import reasons
from lsemrl.data.glance import at_a_glance
from lsemrl.data.inspection import Inspection, inspect, inspect_special
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.records import Record
from lsemrl.data.sources import Source
from lsemrl.data.translation import TranslationData, task
from lsemrl.languages import Language, language
from lsemrl.micro import corpus

TASK = task("zh", "bo", PromptTemplate())
PROFILES = {"zh": language("zh"), "bo": language("bo")}
PAIRS = [
    (str(row["zh"]), str(row["bo"][0] if isinstance(row["bo"], list) else row["bo"]))
    for row in corpus.translation("train", 60, 0)
]


def records(pairs: Sequence[tuple[str, str]], name: str = "a.tsv") -> list[Record]:
    return [
        Record(id=str(at), place=f"{name}:{at + 1}", inputs={"zh": zh}, targets=(bo,))
        for at, (zh, bo) in enumerate(pairs)
    ]


def look(pairs: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]] = (), **profiles: Language) -> Inspection:
    return inspect({"train": records(pairs), "test": records(test, "t.tsv")}, TASK, PROFILES | profiles)


def test_clean_rows_say_what_they_are_and_nothing_else() -> None:
    found = look(PAIRS)
    assert found.findings == () and found.rows == {"train": 60, "test": 0}
    zh, bo = found.sides
    assert (zh.field, zh.unit, zh.scripts) == ("zh", "character", {"Han": 1.0})
    assert (bo.field, bo.unit, bo.scripts, bo.texts) == ("bo", "syllable", {"Tibetan": 1.0}, 60)
    assert len(found.ratios) == 60


def test_lengths_are_in_what_the_script_is_cut_into_also_of_a_language_that_nobody_named() -> None:
    found = inspect({"train": records(PAIRS)}, TASK, {"zh": None, "bo": None})
    assert [side.unit for side in found.sides] == ["character", "syllable"]


@pytest.mark.parametrize(
    ("pair", "level", "sentence"),
    [
        (("学生在学校。", "学生在学校。"), "warning", "1 of 61 outputs are their input, untranslated"),
        (("学生在学校。", "the students are at school"), "warning", "1 of 61 'bo' are not Tibetan by its letters"),
        (("students", "སློབ་མ་སློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'zh' are not Chinese by its letters"),
        (("学生在学校。", "༡༢༣"), "warning", "1 of 61 'bo' hold no letter"),
        (("学生\u200b在学校。", "སློབ་མ་སློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'zh' hold characters that are not seen"),
        (("学生\u200f在学校。", "སློབ་མ་སློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'zh' hold characters that are not seen"),
        (("学生\x07在学校。", "སློབ་མ་སློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'zh' hold control characters"),
        (("学生在学校。", "སློབ་མ་\ufffdསློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'bo' hold what looks like text decoded by"),
        (("学生在学校。", "སློབ་མ་སློབ་གྲྭར་ཡོད།" * 9), "warning", "1 of 61 outputs are over 3 times longer"),
        (PAIRS[0], "note", "1 training rows are another row again"),
        (("学生在学校。", "\u0f43"), "warning", "1 of 61 'bo' are not in the Unicode form NFC: the same word"),
        (("学生&amp;老师。", "སློབ་མ་སློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'zh' hold entities of HTML"),
        (("学生在学校。", "སློབ་མ་&#3926;སློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'bo' hold entities of HTML"),
        (('"他说""学生""。"', "སློབ་མ་སློབ་གྲྭར་ཡོད།"), "warning", "1 of 61 'zh' are quoted as a spreadsheet"),
    ],
)
def test_what_is_wrong_with_a_row_is_found(pair: tuple[str, str], level: str, sentence: str) -> None:
    found = [one for one in look([*PAIRS, pair]).findings if one.says.startswith(sentence)]
    assert len(found) == 1 and found[0].level == level
    assert found[0].rows[0].place in ("a.tsv:61", "a.tsv:1")


def test_equal_rows_of_a_split_that_measures_count_in_its_score_as_often() -> None:
    found = look(PAIRS[:40], [*PAIRS[40:50], PAIRS[40], PAIRS[40]])
    assert [(one.level, one.says) for one in found.findings] == [("warning", "2 test rows are another row again")]
    assert found.findings[0].rows[0].why == "3 times, also t.tsv:11"


@pytest.mark.parametrize("text", ['"学生在学校。"', '他说""学生""。', '""', '"', "学生 & 老师; 学校", "R&D;学生"])
def test_quotation_marks_and_ampersands_of_a_text_are_no_fault(text: str) -> None:
    says = [one.says for one in look([*PAIRS, (text, "སློབ་མ་སློབ་གྲྭར་ཡོད།")]).findings]
    assert not [said for said in says if "HTML" in said or "quoted" in said]


def test_quotation_marks_around_every_text_are_the_file_s() -> None:
    marked = [(f'"{zh}"', bo) for zh, bo in PAIRS]
    [found] = [one.says for one in look(marked).findings if "quoted" in one.says]
    assert found.startswith("60 of 60 'zh' are quoted as a spreadsheet")


def test_zero_width_spaces_between_words_of_a_script_without_spaces_are_no_fault() -> None:
    khmer = [("学生在学校。", "រក\u200bមិន\u200bឃើញ\u200bផ្លូវ។"), ("学生在学校。", "រក\u200fមិន")]
    says = {one.says: one.level for one in look([*PAIRS, *khmer]).findings}
    [words] = [said for said in says if "between words" in said]
    assert words.startswith("1 of 62 'bo' hold zero-width spaces") and says[words] == "note"
    [hidden] = [said for said in says if "not seen" in said]
    assert hidden.startswith("1 of 62 'bo'")


def test_what_is_wrong_with_most_rows_cannot_work() -> None:
    found = look([(zh, zh) for zh, _ in PAIRS]).findings
    assert [one.level for one in found[:2]] == ["refused", "refused"]


def test_sentences_without_a_translation() -> None:
    alone = [*(zh for zh, _ in PAIRS[30:]), PAIRS[30][0], "the students are at school", "༡༢༣"]
    found = inspect(
        {"train": records(PAIRS[:20]), "test": records(PAIRS[28:32], "t.tsv")},
        TASK,
        PROFILES,
        [replace(record, targets=()) for record in records([(zh, "") for zh in alone], "mono.txt")],
    )
    assert found.rows == {"train": 20, "test": 4, "untranslated": 33}
    assert all(side.texts == 24 for side in found.sides) and len(found.ratios) == 24
    assert [one.says.removeprefix("without a translation: ") for one in found.findings] == [
        "1 of 33 'zh' hold no letter",
        "1 of 33 'zh' are not Chinese by its letters",
        "1 of 33 'zh' are another again",
        "3 of 33 'zh' are of held-out rows; training leaves them out",
    ]
    assert [row.place for row in found.findings[-1].rows] == ["mono.txt:1", "mono.txt:2", "mono.txt:31"]


def test_leaks_between_splits() -> None:
    long_zh, long_bo = ("，".join(zh for zh, _ in PAIRS[:6]), "".join(bo for _, bo in PAIRS[:6]))
    found = look([*PAIRS[:20], (long_zh, long_bo)], [PAIRS[3], *PAIRS[40:50], ("新" + long_zh, long_bo + "གསར")])
    says = [one.says for one in found.findings]
    assert any(each.startswith("1 test rows share a text with training rows") for each in says)
    for side in ("zh", "bo"):
        leak = next(
            one for one in found.findings if one.says.startswith(f"the '{side}' of 1 of 12 test rows is nearly")
        )
        assert leak.rows[0].place == "t.tsv:12" and leak.rows[0].why.endswith(
            "of its runs are known, most from a.tsv:21"
        )
    short = look(PAIRS[:20], [(f"{PAIRS[0][0]}！", "ཨོ་ན།")]).findings
    assert [row.why for one in short if "nearly" in one.says for row in one.rows] == ["100% like a.tsv:1"]


def test_leaks_that_were_looked_for_in_some_rows_only_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_KNOWN", 12)
    zh, bo = PAIRS[0]
    says = [one.says for one in look(PAIRS[:20], [(f"{zh}！", bo), *PAIRS[30:40]]).findings]
    assert any("nearly that of one of 12 of the 20 training rows, for no others are looked at" in one for one in says)


def test_outputs_that_many_inputs_share() -> None:
    same = [(f"{zh}又", "ཨོ་ན་དེ་འདྲ་རེད།") for zh, _ in PAIRS[:5]]
    found = look([*PAIRS, *same, same[0]]).findings
    assert any(one.says == "6 training rows share their output" for one in found)


def test_two_languages_in_the_same_letters_are_told_so() -> None:
    pairs = records([("water is here", "wata dey here"), ("we go home now", "make we go house")])
    english = task("en", "pcm", PromptTemplate())
    rows = [Record(id=row.id, place=row.place, inputs={"en": row.inputs["zh"]}, targets=row.targets) for row in pairs]
    found = inspect({"train": rows}, english, {"en": language("en"), "pcm": language("pcm")}).findings
    assert [one.says.partition(";")[0] for one in found] == [
        "English and Nigerian Pidgin are in the same letters, so that a copy of the source passes for Nigerian Pidgin"
    ]


def test_the_start_of_training_says_it_in_short(tokenizer: PreTrainedTokenizerFast, write: Callable[..., str]) -> None:
    assert at_a_glance(records(PAIRS), "zh") == []
    rows = [{"zh": zh, "bo": zh if at < 9 else bo} for at, (zh, bo) in enumerate(PAIRS)]
    lines = TranslationData(Source(path=write("a.jsonl", rows))).prepare(tokenizer)
    said = [line for line in lines if "warning" in line]
    assert len(said) == 1 and said[0].startswith("zh-bo: warning: ") and "lsemrl check says more" in said[0]
    assert not [line for line in TranslationData().prepare(tokenizer) if "warning" in line]
    rows[20]["zh"] += "<|end|>好"
    (line,) = [
        one for one in TranslationData(Source(path=write("b.jsonl", rows[9:]))).prepare(tokenizer) if "warn" in one
    ]
    assert "1 of 51 rows hold the text of a special token, as '<|end|>': in a prompt" in line and "b.jsonl:12" in line
    quoting = records([*PAIRS, ("<|user|>", "<|end|>"), ("学生", "<|end|>")])  # what is in an answer is read as text
    (found,) = inspect_special(quoting, TASK, tokenizer, ())
    assert found.says.startswith("1 of 62 rows") and [row.place for row in found.rows] == ["a.tsv:61"]
    (found,) = inspect_special(quoting, TASK, tokenizer, quoting[-1:])  # but for one that prompts show
    assert found.says.startswith("2 of 62 rows") and [row.place for row in found.rows] == ["a.tsv:61", "a.tsv:62"]
    ended = [{"zh": zh, "bo": f"{bo}<|end|>"} for zh, bo in PAIRS]
    data = TranslationData(Source(path=write("c.jsonl", ended)), template=PromptTemplate(shots=2))
    (line,) = [one for one in data.prepare(tokenizer) if "warning" in one]
    assert "2 of 60 rows hold the text of a special token" in line
    mixed = [(zh, "\u0f43" + bo if at < 9 else bo) for at, (zh, bo) in enumerate(PAIRS)]
    assert "9 of 60 outputs are not in the Unicode form NFC" in at_a_glance(records(mixed), "zh")[0]


def test_reasons_are_counted_by_kind() -> None:
    bad = ["has 3 values for 2 columns", "field 'zh' is empty", "has 4 values for 2 columns"]
    assert reasons(bad) == ["2 rows: has 3 values for 2 columns", "1 row: field 'zh' is empty"]
