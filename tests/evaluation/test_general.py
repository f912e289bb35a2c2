"""What general ability is called, and what its answers score."""

from __future__ import annotations

import pytest

from lsemrl.evaluation.general import answered_in, language_of, name_of
from lsemrl.types import Example

PROSE = {
    "Chinese": "他买了三本书，然后和朋友去了公园。",
    "English": "The man bought the books in the old town, and then he went to the park with a friend.",
    "Latin-script": "Der Mann kaufte die Bücher in der alten Stadt und ging dann mit einem Freund in den Park.",
    "Tibetan": "དགེ་རྒན་གྱིས་དེབ་གསུམ་ཉོས་སོང་།",
    "Japanese": "彼は本を三冊買って、友達と公園に行きました。",
    "Korean": "그는 책 세 권을 사서 공원에 갔다.",
    "Arabic-script": "اشترى الرجل ثلاثة كتب وذهب إلى الحديقة.",
    "": "1999 – 2004, 3.5%",
}


def example(source: str, *answers: str) -> Example:
    return Example(id="1", prompt=source, source=source, references=answers)


@pytest.mark.parametrize("language", PROSE)
def test_a_language_is_told_by_its_script_as_far_as_that_tells_it(language: str) -> None:
    assert language_of([PROSE[language]]) == language


def test_answers_say_which_language_and_numbers_leave_it_to_the_question() -> None:
    assert name_of([example(PROSE["English"], "光荣", "由光荣")]) == "Chinese QA"
    assert name_of([example(PROSE["Chinese"], "3"), example(PROSE["Chinese"], "1999")]) == "Chinese QA"
    assert answered_in([example(PROSE["English"], "Denver Broncos"), example(PROSE["English"], "gold")]) == "English"
    assert answered_in([example(PROSE["Latin-script"], "Bücher")]) == "Latin-script"
    assert answered_in([example(PROSE["Arabic-script"], "Denver")]) == "Latin-script"
    assert name_of([example("1 + 1", "2")]) == "QA"
