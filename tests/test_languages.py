from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from lsemrl.errors import UserError
from lsemrl.languages import Language, language, usual_profile
from lsemrl.metrics.settings import MetricSettings
from lsemrl.scripts import splits, units

SENTENCES = {
    "bo": "བོད་ཡིག་ནི་བོད་རིགས་ཀྱི་ཡི་གེ་ཡིན།",
    "ug": "ئۇيغۇر تىلى تۈركىي تىللارنىڭ بىرى.",
    "mn": "Монгол хэл бол албан ёсны хэл юм.",
    "kk": "Қазақ тілі — түркі тілдерінің бірі.",
    "th": "ภาษาไทยเป็นภาษาราชการของประเทศไทย",
    "zh": "藏语是汉藏语系的一种语言。",
    "en": "Tibetan is a Sino-Tibetan language.",
}
NEUTRAL = st.text(alphabet="0123456789 ༠༡٣。，、.!?()་།𑗅😀—\u0640\u200c\u0301", max_size=12)
# Texts with every kind of character that the rules distinguish, and any other.
TEXTS = st.text(
    alphabet=st.sampled_from("བོདརྒྱ་།༌ \ufffd中文ไท้яӨەaé1༡\u0301\u200d\u180eー") | st.characters(), max_size=30
)
PROFILES = st.sampled_from([language(code) for code in (*SENTENCES, "km", "ja", "jv-Java")])


@pytest.mark.parametrize(
    ("code", "name", "scripts", "threshold", "unit"),
    [
        ("bo", "Tibetan", ("Tibetan",), 0.8, "syllable"),
        ("ug", "Uyghur", ("Arabic",), 0.8, "word"),
        ("mn", "Mongolian", ("Cyrillic", "Mongolian"), 0.8, "word"),
        ("kk", "Kazakh", ("Cyrillic", "Arabic"), 0.8, "word"),
        ("th", "Thai", ("Thai",), 0.8, "character"),
        ("zh", "Chinese", ("Han",), 0.5, "character"),
        ("en", "English", ("Latin",), 0.8, "word"),
        ("pcm", "Nigerian Pidgin", ("Latin",), 0.8, "word"),
        ("kk-Cyrl", "Kazakh", ("Cyrillic",), 0.8, "word"),
        ("kk-CN", "Kazakh (China)", ("Arabic",), 0.8, "word"),
        ("mn-Mong", "Mongolian (Mongolian)", ("Mongolian",), 0.8, "word"),
        ("zh-Hant", "Chinese (Traditional)", ("Han",), 0.5, "character"),
        ("ja", "Japanese", ("Han", "Hiragana", "Katakana"), 0.5, "character"),
        ("ko", "Korean", ("Hangul", "Han"), 0.8, "word"),
        ("km", "Khmer", ("Khmer",), 0.8, "character"),
        ("dz", "Dzongkha", ("Tibetan",), 0.8, "syllable"),
        ("nod", "Northern Thai", ("Tai Tham",), 0.8, "character"),
        ("aaa-Latn", "Ghotuo (Latin)", ("Latin",), 0.8, "word"),
    ],
)
def test_a_language_by_its_tag(code: str, name: str, scripts: tuple[str, ...], threshold: float, unit: str) -> None:
    whole = Language(code=code, name=name, scripts=scripts, threshold=threshold, unit=unit)  # type: ignore[arg-type]
    assert language(code) == whole


def test_tags_are_read_in_whatever_form() -> None:
    assert language("kaz_Cyrl") == language("kk-Cyrl") and language("bod") == language("bo")


def test_names_and_directions() -> None:
    assert (language("ug").own_name, language("ug").direction) == ("ئۇيغۇرچە", "right to left")
    assert (language("bo").own_name, language("bo").direction) == ("བོད་སྐད་", "left to right")
    ours = Language(code="x-own", name="Ours", scripts=("Nko",))
    assert (ours.own_name, ours.direction) == ("Ours", "right to left")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("tibetan", r"'tibetan', which is no code of a language \(that of tibetan is bo\)"),
        ("xx", "'xx', which is no code of a language; give one of ISO 639"),
        ("und", "'und', which is no code"),
        ("", "'', which is no code"),
        # CLDR lists neither, and langcodes would say Latin for both.
        ("ajp", "'ajp', and which script .* such as ajp-Latn"),
        ("aaa", "'aaa', and which script"),
    ],
)
def test_a_tag_of_which_nothing_is_known_is_refused(code: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        language(code)
    assert usual_profile(code) is None


def test_a_profile_takes_from_its_tag_what_it_does_not_say() -> None:
    assert Language(code="zh", threshold=0.7) == Language(
        code="zh", name="Chinese", scripts=("Han",), threshold=0.7, unit="character"
    )
    latin = Language(code="kk", scripts=("Latin",))
    assert latin.accepts("Qazaq tili") and latin.name == "Kazakh"
    with pytest.raises(UserError, match="'xx', and which script"):
        Language(code="xx", name="Own")


@pytest.mark.parametrize(("code", "sentence"), SENTENCES.items())
def test_a_sentence_is_of_its_own_language(code: str, sentence: str) -> None:
    assert language(code).share(sentence) == 1.0
    # Mongolian and Kazakh share Cyrillic, Uyghur and Kazakh the Arabic script: no script rule tells them apart.
    others = {"mn": {"kk"}, "kk": {"mn"}, "ug": {"kk"}}.get(code, set())
    assert {other for other in SENTENCES if language(other).accepts(sentence)} == {code} | others


def test_both_scripts_of_mongolian_and_kazakh_count() -> None:
    assert language("mn").accepts("ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ")
    assert language("kk").accepts("قازاق ٴتىلى")
    assert not language("kk").accepts("Qazaq tili")


@pytest.mark.parametrize("text", ["", "   ", "123 ༡༢༣", "་།", "😀!?", "\u0301", "\u0640"])
def test_no_letter_is_no_share(text: str) -> None:
    assert language("bo").share(text) is None
    assert not language("bo").accepts(text)


def test_share_counts_letters_only() -> None:
    # Two Tibetan letters, one with a vowel sign and one with a letter below it, and three Latin ones.
    assert language("bo").share("བོ་རྒ། abc 12") == 2 / 5
    assert language("bo").share("བ\ufffd") == 0.5
    assert language("bo").share("\ufffd") == 0.0


def test_letters_in_a_mathematical_font_are_of_no_language() -> None:
    assert language("bo").share("བ𝐜") == language("en").share("b𝐜ー") == 0.5
    assert language("en").share("ℝℂ𝔞") == 0.0


def test_the_threshold_is_inclusive() -> None:
    assert language("bo").accepts("བབབབa", threshold=0.8)
    assert language("bo").accepts("བབབབa")
    assert not language("bo").accepts("བབབa")


@given(PROFILES, TEXTS)
def test_share_is_a_share_of_letters(profile: Language, text: str) -> None:
    share = profile.share(text)
    if share is None:
        assert "\ufffd" not in text and not profile.accepts(text, threshold=1e-9)
    else:
        assert 0 <= share <= 1 and regex.search(r"\p{L}|\uFFFD", text)


@given(PROFILES, TEXTS, NEUTRAL)
def test_neutral_characters_change_no_share(profile: Language, text: str, neutral: str) -> None:
    # A space between, since an accent would otherwise melt into the letter before it.
    assert profile.share(f"{neutral} {text} {neutral}") == profile.share(text)


@given(PROFILES, TEXTS)
def test_broken_bytes_never_help(profile: Language, text: str) -> None:
    assert profile.share(text + "\ufffd") in (0.0, profile.share(text)) or (
        profile.share(text + "\ufffd") < profile.share(text)
    )


@given(PROFILES, TEXTS)
def test_canonically_equivalent_texts_are_equal(profile: Language, text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert profile.share(text) == profile.share(decomposed)
    assert units(text) == units(decomposed)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("བོད་ཡིག་ནི།  ཡི་གེ༌ཡིན༎", ["བོད", "ཡིག", "ནི", "ཡི", "གེ", "ཡིན"]),
        ("ལོ་༢༠༢༤ NBA 中文།", ["ལོ", "༢༠༢༤", "NBA", "中", "文"]),
        ("藏语2024年，iPhone。", ["藏", "语", "2024", "年", "iPhone"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("ئۇيغۇر تىلى،", ["ئۇيغۇر", "تىلى"]),
        ("Монгол хэл.", ["Монгол", "хэл"]),
        ("ᠬᠠᠨ\u180eᠠ ᠪᠠ", ["ᠬᠠᠨ\u180eᠠ", "ᠪᠠ"]),
        ("Sino-Tibetan", ["Sino", "Tibetan"]),
        ("I love you \u2764\ufe0f, \u2764\ufe0fyou", ["I", "love", "you", "you"]),  # a heart is no word
        ("ស្ត្រី ខ្មែរ", ["ស្ត្រី", "ខ្មែ", "រ"]),
        ("မန္တလေး", ["မ", "န္တ", "လေး"]),
        ("ꦲꦏ꧀ꦱꦫ", ["ꦲ", "ꦏ꧀ꦱ", "ꦫ"]),
        ("", []),
        ("།་ !", []),
    ],
)
def test_units(text: str, cut: list[str]) -> None:
    assert units(text) == cut


def test_half_a_syllable_is_not_a_whole_one() -> None:
    assert units("བོད་ཡ\ufffd") == ["བོད", "ཡ\ufffd"]


@given(TEXTS, st.sampled_from([" ", "་", "།", "\n"]))
def test_units_joined_by_any_separator_are_the_same_units(text: str, separator: str) -> None:
    cut = units(text)
    assert units(separator.join(cut)) == cut
    assert not any(regex.search(r"[\p{P}\p{Z}]", unit) for unit in cut)


@given(TEXTS)
def test_units_lose_no_letter(text: str) -> None:
    letters = regex.findall(r"\p{L}|\p{N}", unicodedata.normalize("NFC", text))
    assert regex.findall(r"\p{L}|\p{N}", "".join(units(text))) == letters


def test_a_writing_without_separators_is_not_split() -> None:
    assert not splits("བ" * 40)
    assert splits("བ" * 39)
    assert splits("བོད་" * 40)
    assert splits("藏" * 40)
    assert splits("")


def test_a_profile_of_ones_own_stands_for_a_code() -> None:
    khmer = Language(code="km", name="Khmer", scripts=("Khmer",))
    assert language(khmer) is khmer
    assert khmer.accepts("ខ្ញុំផឹកទឹក") and not khmer.accepts("I drink water")
    with pytest.raises(UserError, match=r"scripts has 'Kmer', which is no script of Unicode"):
        Language(code="km", name="Khmer", scripts=("Kmer",))
    with pytest.raises(UserError, match=r"threshold is 0"):
        Language(code="km", threshold=0)
    with pytest.raises(UserError, match=r"threshold is 1\.5"):
        Language(code="km", name="Khmer", scripts=("Khmer",), threshold=1.5)


@pytest.mark.parametrize(
    ("said", "name", "threshold", "unit"),
    [
        ("Hani", "Han", 0.5, "character"),
        ("han", "Han", 0.5, "character"),
        ("Tibt", "Tibetan", 0.8, "syllable"),
        ("tibetan", "Tibetan", 0.8, "syllable"),
        ("new_tai_lue", "New Tai Lue", 0.8, "character"),
        ("latn", "Latin", 0.8, "word"),
    ],
)
def test_a_script_is_one_however_it_is_spelt(said: str, name: str, threshold: float, unit: str) -> None:
    profile = Language(code="x-own", name="Ours", scripts=(said,))
    assert (profile.scripts, profile.threshold, profile.unit) == ((name,), threshold, unit)


def test_a_script_by_its_code_refuses_metrics_of_words() -> None:
    with pytest.raises(UserError, match="counts words between spaces, and Tibetan is written without"):
        MetricSettings(names=("bleu_13a",), language=Language(code="bo", scripts=("Tibt",)))


@pytest.mark.parametrize("said", ["Common", "Zyyy", "Inherited", "Unknown", ""])
def test_what_no_letter_tells_is_no_script(said: str) -> None:
    with pytest.raises(UserError, match="which is no script of Unicode"):
        Language(code="x-own", name="Ours", scripts=(said,))


def test_texts_are_cut_by_their_script_whatever_is_said() -> None:
    with pytest.raises(
        UserError, match=r"language\.unit is 'word', but texts in Tibetan letters are cut into syllables"
    ):
        Language(code="bo", unit="word")
