"""What general ability is called, and what its answers score."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lsemrl.data import choice, comprehension, headline, instruction
from lsemrl.evaluation.general import (
    answered_in,
    blind,
    language_of,
    name_of,
    remark,
    score_answers,
    score_leaks,
    signatures,
)
from lsemrl.languages import Language, language
from lsemrl.metrics import cmrc, corpus
from lsemrl.metrics.contained import SIGNATURE
from lsemrl.types import Completion, Example

PROSE = {
    "Chinese": "他买了三本书，然后和朋友去了公园。",
    "English": "The man bought the books in the old town, and then he went to the park with a friend.",
    "Latin-script": "Der Mann kaufte die Bücher in der alten Stadt und ging dann mit einem Freund in den Park.",
    "Tibetan": "དགེ་རྒན་གྱིས་དེབ་གསུམ་ཉོས་སོང་།",
    "Japanese": "彼は本を三冊買って、友達と公園に行きました。",
    "Korean": "그는 책 세 권을 사서 공원에 갔다.",
    "Arabic-script": "اشترى الرجل ثلاثة كتب وذهب إلى الحديقة.",
    "Devanagari-script": "भारत की राजधानी क्या है? (NASA)",
    "Ethiopic-script": "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት the",
    "": "1999 – 2004, 3.5%",
}


def example(source: str, *answers: str) -> Example:
    return Example(id="1", prompt=source, source=source, references=answers)


@pytest.mark.parametrize("language", PROSE)
def test_a_language_is_told_by_its_script_as_far_as_that_tells_it(language: str) -> None:
    assert language_of([PROSE[language]]) == language


def test_answers_say_which_language_and_numbers_leave_it_to_the_question() -> None:
    assert name_of(comprehension.TASK, [example(PROSE["English"], "光荣", "由光荣")]) == "Chinese QA"
    assert (
        name_of(comprehension.TASK, [example(PROSE["Chinese"], "3"), example(PROSE["Chinese"], "1999")]) == "Chinese QA"
    )
    assert answered_in([example(PROSE["English"], "Denver Broncos"), example(PROSE["English"], "gold")]) == "English"
    assert answered_in([example(PROSE["Latin-script"], "Bücher")]) == "Latin-script"
    assert answered_in([example(PROSE["Arabic-script"], "Denver")]) == "Latin-script"
    assert name_of(comprehension.TASK, [example("1 + 1", "2")]) == "QA"


def learned(spoken: str) -> list[Example]:
    """Rows of a new task in a language."""
    return [example("1", PROSE[spoken])]


def said(source: str, answer: str, output: str) -> Completion:
    return Completion(text=output, ended=True, example=example(source, answer))


def test_what_is_no_short_answer_is_called_by_its_task() -> None:
    assert name_of(instruction.TASK, [example("1 + 1", "2")]) == "instructions"
    assert name_of(choice.TASK, [example("1 + 1", "2")]) == "multiple choice"
    assert name_of(headline.TASK, [example("1 + 1", "2")]) == "headline"


def test_chinese_answers_are_scored_by_cmrc_to_the_bit_and_others_by_squad() -> None:
    outputs = ["由光荣开发。", "光荣", "1999年"]
    found = score_answers([said(PROSE["Chinese"], "光荣", output) for output in outputs], "answers")
    old = cmrc.score(outputs, [["光荣"]] * 3)
    assert {name: found[name] for name in old} == old
    assert found["contained"] == (1.0, 1.0, 0.0)
    cut = replace(said(PROSE["English"], "Denver Broncos", "It was the Denver Broncos!"), ended=False)
    right = {"em": (0.0,), "f1": (2 / 3,), "contained": (1.0,)}
    rest = {"asked_back": (0.0,), "answer_length": (26.0,), "ended_rate": (0.0,)}
    assert score_answers([cut], "answers") == {**right, **rest}


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ("When was it built?", 1),
        ("«Quand a-t-il été construit ?» ", 1),
        ("什么时候建的？", 1),
        ("متى بُني؟", 1),
        ("Πότε χτίστηκε;", 1),  # a Greek mark of its own: U+037E
        ("Πότε χτίστηκε\N{GREEK QUESTION MARK}", 1),
        ("What? In 1932.", 0),
        ("int x;", 0),
        ("What? 1932", 0),
        ("", 0),
    ],
)
def test_answers_that_are_questions_are_asked_back(answer: str, asked: int) -> None:
    assert score_answers([said("Built when?", "1932", answer)], "answers")["asked_back"] == (asked,)
    assert score_answers([said("Its title?", "Who Goes There?", answer)], "answers")["asked_back"] == (0,)


def test_answers_to_instructions_are_scored_by_chrf() -> None:
    outputs = ["他买了书。", "他卖了书", ""]
    found = score_answers([said("说", "他买了书。", output) for output in outputs], "references")
    assert found["chrf_sentence"] == corpus.chrf(outputs, [["他买了书。"]] * 3).rows
    assert found["answer_length"] == (5.0, 4.0, 0.0) and "em" not in found


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2, 2), (1, 3, 1)])
def test_how_it_is_scored_is_known_before_there_are_answers(counts: tuple[int, ...]) -> None:
    leak = {"leak": f"share of answers in lang:bo|{language('bo').rule}|quotations:none"}
    chinese, english = ([example(PROSE[asked], gold)] for asked, gold in (("Chinese", "光荣"), ("English", "Denver")))
    for examples, rules in ((chinese, {"cmrc": "CMRC 2018 v6"}), (english, {"squad": "SQuAD v1.1"})):
        assert signatures("answers", examples, learned("Tibetan"), language("bo")) == {
            **rules,
            "contained": SIGNATURE,
            **leak,
        }
    assert set(signatures("answers", english, learned("English"), language("pcm"))) == {"squad", "contained"}
    assert set(signatures("choices", chinese, learned("Tibetan"), language("bo"))) == {"accuracy"}
    assert signatures("answers", [], learned("Tibetan"), language("bo")) == {}
    golds = [("他买了书。",) * count for count in counts]
    answers = corpus.chrf(["他", "", "书"], golds).signature
    asked = [example("说", *gold) for gold in golds]
    found = signatures("references", asked, learned("Tibetan"), language("bo"))
    assert found == {"general.chrf": f"mean of answers, {answers}", **leak}


@pytest.mark.parametrize(
    ("asked", "gold", "named"),
    [
        ("東京はどこの国の首都ですか。", "日本の首都", "Japanese"),
        ("สงครามสิ้นสุดเมื่อใด", "พุทธศักราชสองพัน", "Thai"),
        ("རྒྱལ་ས་གང་ཡིན།", "ལྷ་ས", "Tibetan"),
        ("What is the capital?", "Denver", ""),
        ("首都是哪里？", "北京", ""),  # by CMRC's rules
        ("いつ終わりましたか。", "1945", ""),  # numbers are words
    ],
)
def test_f1_of_answers_without_spaces_is_told_to_say_little(asked: str, gold: str, named: str) -> None:
    said = remark("answers", [example(asked, gold)])
    assert said.partition(" counts words between spaces, and ")[2].partition(" is written")[0] == named
    assert remark("choices", [example(asked, gold)]) == remark("answers", []) == ""


def test_nothing_is_scored_where_nothing_was_asked() -> None:
    assert score_answers([], "answers") == {}


def test_answers_in_the_learned_language_leak() -> None:
    outputs = [PROSE["Tibetan"], "光荣", "", f"光荣 {PROSE['Tibetan']}", "1999"]
    answers = [said(PROSE["Chinese"], "光荣", output) for output in outputs]
    found = score_leaks(answers, learned("Tibetan"), language("bo"))
    assert found == {"leak": (1.0, 0.0, 0.0, 1.0, 0.0)}


def test_words_of_the_question_or_of_an_accepted_answer_are_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """An identifier takes the name of a person for the new language; a few words that are quoted are in the old one."""
    monkeypatch.setattr(Language, "verdicts", lambda self, texts, _=None: [float("Who" not in text) for text in texts])
    question = "Passage: The anthem was sung by Lady Gaga, and signed by Marlee Matlin.\nWho signed it?"
    outputs = ["marlee  Matlin.", "Deaf Marlee", "five", "Lady", "Lad", "sung by Marlee", ""]
    answers = [said(question, "All five", output) for output in outputs]
    found = score_leaks(answers, learned("English"), language("pcm"))
    assert found == {"leak": (0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0)}


def test_no_leak_is_told_where_the_rule_passes_the_questions_too() -> None:
    """A script that both are written in, or general ability in the very language that was learned."""
    for code, prose in (("pcm", PROSE["English"]), ("zh", PROSE["Chinese"])):
        assert score_leaks([said(prose, "answer", prose)], [example("1", prose)], language(code)) == {}
    assert score_leaks([], learned("Tibetan"), language("bo")) == {}


def test_no_leak_is_told_by_the_rule_of_a_language_that_the_new_task_is_not_in() -> None:
    """Tibetan is what metrics.language is where nobody says it, and no answer of a policy of Pidgin is in it."""
    chinese, pidgin = said(PROSE["Chinese"], "光荣", "Di man buy di book dem."), learned("English")
    assert score_leaks([chinese], pidgin, language("en")) == {"leak": (1.0,)}
    assert score_leaks([chinese], pidgin, language("bo")) == {}
    assert "leak" not in signatures("answers", [chinese.example], pidgin, language("bo"))
    assert "most references do not pass; name their language in metrics.language" in blind(
        [chinese.example], pidgin, language("bo")
    )
