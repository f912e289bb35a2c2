"""What tokenizers of every kind make of a script that they know, and of one that they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lsemrl.data.carried import Carried, alike, carried, changed, unknown_ids
from lsemrl.types import Example

LATIN = "abcdefghijklmnopqrstuvwxyz"
BO = ["དགེ་རྒན་གྱིས་དེབ་ཉོས།", "སློབ་མས་ཡི་གེ་གསར་པ་བཀླགས།", "ཞོགས་པ་བདེ་ལེགས།"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fast(model: Any, normalizer: Any = None, splitter: Any = None, **tokens: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    if splitter is not None:
        backend.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def wordpiece(*pieces: str, **settings: Any) -> PreTrainedTokenizerFast:
    vocabulary = {piece: at for at, piece in enumerate(["[UNK]", *pieces])}
    return fast(models.WordPiece(vocabulary, unk_token="[UNK]"), splitter=pre_tokenizers.BertPreTokenizer(), **settings)


def unigram(*pieces: str, byte_fallback: bool = False) -> PreTrainedTokenizerFast:
    scored = [("<unk>", 0.0), *((piece, -1.0) for piece in ("▁", *pieces))]
    model = models.Unigram(scored, unk_id=0, byte_fallback=byte_fallback)
    return fast(model, splitter=pre_tokenizers.Metaspace())


def latin_bpe(**settings: Any) -> PreTrainedTokenizerFast:
    vocabulary = {piece: at for at, piece in enumerate(["<unk>", *LATIN])}
    return fast(models.BPE(vocabulary, [], **settings))


@pytest.mark.parametrize(
    "blind",
    [
        wordpiece(*LATIN, "་", "།"),
        wordpiece(*LATIN, unk_token="[UNK]"),
        fast(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"), splitter=pre_tokenizers.Whitespace()),
        unigram(*LATIN, "་", "།"),
        latin_bpe(unk_token="<unk>"),
        latin_bpe(unk_token="<unk>", fuse_unk=True),
        latin_bpe(),  # drops them
        wordpiece(*LATIN, normalizer=normalizers.Replace(Regex(r"\p{Tibetan}"), "")),  # and so does this
    ],
    ids=["wordpiece", "declared", "wordlevel", "unigram", "bpe", "fused", "dropped", "deleted"],
)
def test_letters_without_a_token_are_counted(blind: PreTrainedTokenizerFast) -> None:
    found = carried(blind, BO)
    assert found.unknown == 1.0
    assert set(found.unread) <= {"དགེ", "རྒན", "གྱིས"}
    assert carried(blind, ["a b a"]).unknown == 0.0


def test_bytes_carry_every_script(tokenizer: PreTrainedTokenizerFast) -> None:
    for every in (tokenizer, unigram(*BYTES, byte_fallback=True)):
        found = carried(every, [*BO, "abc 你好 🙂"])
        assert (found.unknown, found.alike) == (0.0, 0.0)
        assert found.tokens_per_unit > 1


def test_texts_without_a_unit_or_a_letter_have_no_tokens_for_one(tokenizer: PreTrainedTokenizerFast) -> None:
    found = carried(tokenizer, ["🙂🙂", "…"])
    assert (found.tokens_per_unit, found.tokens_per_letter) == (0.0, 0.0)


def test_a_tokenizer_of_the_older_kind_is_asked_letter_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    letter_wise = latin_bpe(unk_token="<unk>")
    monkeypatch.setattr(type(letter_wise), "is_fast", False)
    assert carried(letter_wise, ["ab ཀ"]).unknown == pytest.approx(1 / 3)


def test_a_sentence_taken_for_one_word_is_unknown_although_its_words_are_known() -> None:
    letters = sorted({letter for text in BO for letter in text})
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    assert carried(wordpiece(*pieces), BO).unknown == 0.0
    whole = fast(models.WordPiece(
        {piece: at for at, piece in enumerate(["[UNK]", *pieces])}, unk_token="[UNK]", max_input_chars_per_word=20
    ), splitter=pre_tokenizers.WhitespaceSplit())  # fmt: skip
    assert carried(whole, BO[:2]).unknown == 1.0


def test_words_that_lose_their_marks_are_alike() -> None:
    letters = [chr(point) for point in range(0x0F40, 0x0F6D)]
    stripped = wordpiece(
        *letters, *(f"##{letter}" for letter in letters), normalizer=normalizers.BertNormalizer(strip_accents=True)
    )
    found = carried(stripped, ["ཀི་ཀུ་ཀོ།", "ཀ་ཁ།"])
    assert found.unknown == pytest.approx(3 / 8)  # three vowel signs of eight letters and marks
    assert found.alike == pytest.approx(4 / 5)  # all but ཁ
    lower = wordpiece("a", "b", normalizer=normalizers.Lowercase())
    assert carried(lower, ["A a B"]) == Carried(
        tokens_per_unit=1.0, unit="word", tokens_per_letter=1.0, unknown=0.0, alike=0.0, unread=()
    )
    masked = wordpiece("x", normalizer=normalizers.Replace(Regex(r"\p{Tibetan}+"), "x"))
    assert carried(masked, BO).alike == 1.0


def test_composed_and_decomposed_texts_are_carried_alike() -> None:
    composing = fast(models.BPE({"é": 0, "e": 1}, []), normalizers.NFC())
    assert carried(composing, ["e\u0301"]).unknown == carried(composing, ["é"]).unknown == 0.0


def test_the_unknown_token_is_found_where_it_is_not_declared() -> None:
    assert [unknown_ids(each) for each in (wordpiece("a"), unigram("a"), latin_bpe())] == [{0}, {0}, set()]


def test_texts_read_alike() -> None:
    assert alike(["a b", "A B", "c"], [[1, 2], [1, 2], [3]]) == 0.0
    assert alike(["a b", "a c", "d", "d"], [[1], [1], [2], [2]]) == pytest.approx(2 / 3)


def test_references_that_do_not_come_back(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    def rows(*references: str) -> list[Example]:
        return [Example(id=str(at), prompt="", source="", references=(text,)) for at, text in enumerate(references)]

    whole = make_tokenizer()
    assert changed(whole, rows(*BO, "a<|end|>b", "e\u0301", " 两  字 ")) == ([], [])
    lower = make_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    assert changed(lower, rows("abc", "Abc", "e\u0301", "ABC")) == (["1", "3"], [])
    spaced = wordpiece(*LATIN, "##b", eos_token="z")
    spaced.backend_tokenizer.decoder = decoders.WordPiece()
    assert changed(spaced, rows("ab", "a , a", "a,a", "ག")) == (
        ["1", "2", "3"],
        ["1", "2", "3"],
    )  # "[UNK]" is letters too
    whole = make_tokenizer()
    whole.backend_tokenizer.decoder = decoders.Fuse()  # bytes stay as they are written in the vocabulary
    assert changed(whole, rows("ab", "དེབ་")) == (["1"], ["1"])
