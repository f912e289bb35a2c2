"""Nothing is too long afterwards, nothing is cut silently, and no character is cut in two."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lsemrl.data.limits import Limits, describe, to_examples
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.records import Record
from lsemrl.data.tokens import prompt_ids, target_ids
from lsemrl.types import Example, UserError

TEMPLATE = PromptTemplate(template="标题：{source}。答：")


def record(source: str, target: str = "ཀ", **more: str) -> Record:
    return Record(id=source[:3], place="rows.jsonl:1", inputs={"content": source, **more}, targets=(target,))


def limit(
    tokenizer: PreTrainedTokenizerFast, records: list[Record], *, training: bool = True, **limits: object
) -> tuple[list[Example], dict[str, int]]:
    def render(inputs: Mapping[str, str]) -> str:
        return TEMPLATE.render(tokenizer, {"source": "\n".join(inputs.values())})

    examples, counts, lengths = to_examples(records, render, tokenizer, Limits(**limits), training=training)  # type: ignore[arg-type]
    prompts = prompt_ids(tokenizer, [example.prompt for example in examples])
    targets = target_ids(tokenizer, [example.reference for example in examples])
    assert lengths == [(len(prompt), len(target)) for prompt, target in zip(prompts, targets, strict=True)]
    return examples, counts


LETTERS = st.one_of(
    st.characters(codec="utf-8", exclude_characters="<"), st.sampled_from("དགེ་རྒན་གྱིསཀྵ中文e\u0301👨‍👩‍👧🇨🇳")
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=st.text(LETTERS, min_size=1, max_size=80), room=st.integers(1, 60))
def test_truncation_cuts_only_the_source_between_characters(
    tokenizer: PreTrainedTokenizerFast, source: str, room: int
) -> None:
    frame = len(prompt_ids(tokenizer, [TEMPLATE.render(tokenizer, {"source": ""})])[0])
    long_enough = record("a")  # so that there is always a row left
    examples, counts = limit(
        tokenizer, [long_enough, record(source)], max_prompt_tokens=frame + room, on_long="truncate"
    )
    full = len(prompt_ids(tokenizer, [TEMPLATE.render(tokenizer, {"source": source})])[0])
    assert counts["prompts_over"] == counts["prompts_truncated"] + counts["prompts_skipped"] == (full > frame + room)
    assert counts["rows"] == len(examples) == 2 - counts["prompts_skipped"]
    assert counts["longest_prompt"] == max(full, frame + 1)
    for example in examples[1:]:
        ids = prompt_ids(tokenizer, [example.prompt])[0]
        assert len(ids) <= frame + room
        assert example.prompt == f"<|user|>标题：{example.source}。答：<|assistant|>"
        assert source.startswith(example.source)
        assert (example.source == source) == (full <= frame + room)
        assert ("\ufffd" in tokenizer.decode(ids)) == ("\ufffd" in example.source)
        if example.source != source:
            kept = len(example.source)
            longer = next(end for end in range(kept + 1, len(source) + 1) if not _splits_a_character(source, end))
            over = TEMPLATE.render(tokenizer, {"source": source[:longer]})
            assert len(prompt_ids(tokenizer, [over])[0]) > frame + room, "more would have fitted"
            assert not _splits_a_character(source, kept)


def _splits_a_character(text: str, at: int) -> bool:
    import regex

    return at not in {match.end() for match in regex.finditer(r"\X", text)}


def test_tibetan_stack_stays_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    stack = "རྒྱུ"  # five codepoints, one character
    row = record(stack * 30)
    for room in range(40, 60):
        (example,), _ = limit(tokenizer, [row], max_prompt_tokens=room, on_long="truncate")
        assert len(example.source) % len(stack) == 0


def test_only_the_first_input_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    (example,), counts = limit(
        tokenizer, [record("ཀ" * 300, question="谁？")], max_prompt_tokens=80, on_long="truncate"
    )
    passage, question = example.source.split("\n")
    assert question == "谁？" and 0 < len(passage) < 300 and set(passage) == {"ཀ"}
    assert counts["prompts_truncated"] == 1


def test_row_whose_frame_is_too_long_is_skipped_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [record("ཀ"), record("ཀ" * 99, question="问" * 200)]
    examples, counts = limit(tokenizer, rows, max_prompt_tokens=80, on_long="truncate")
    assert (len(examples), counts["prompts_skipped"], counts["prompts_truncated"]) == (1, 1, 0)


def test_skip_and_error(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [record("ཀ"), record("ཁ" * 200)]
    examples, counts = limit(tokenizer, rows, max_prompt_tokens=80, on_long="skip")
    assert [example.source for example in examples] == ["ཀ"]
    assert (counts["prompts_over"], counts["prompts_skipped"], counts["rows"]) == (1, 1, 1)
    with pytest.raises(UserError, match=r"rows.jsonl:1: the prompt has \d+ tokens, over limits.max_prompt_tokens 80"):
        limit(tokenizer, rows, max_prompt_tokens=80, on_long="error")
    with pytest.raises(UserError, match=r"the target has \d+ tokens, over limits.max_target_tokens 1"):
        limit(tokenizer, rows, max_target_tokens=1, on_long="error")


@pytest.mark.parametrize("on_long", ["skip", "truncate"])
def test_long_targets_are_never_cut(tokenizer: PreTrainedTokenizerFast, on_long: str) -> None:
    rows = [record("ཀ", "ཁ" * 50), record("ག", "ང")]
    examples, counts = limit(tokenizer, rows, max_target_tokens=20, on_long=on_long)
    assert [example.reference for example in examples] == ["ང"]
    assert (counts["targets_over"], counts["targets_skipped"]) == (1, 1)
    examples, counts = limit(tokenizer, rows, max_target_tokens=20, on_long=on_long, training=False)
    assert [example.reference for example in examples] == ["ཁ" * 50, "ང"]
    assert (counts["targets_over"], counts["targets_skipped"]) == (1, 0)
    assert counts["longest_target"] == len(target_ids(tokenizer, ["ཁ" * 50])[0])


def test_limit_counts_the_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    exactly = len(target_ids(tokenizer, ["ཁཁ"])[0])
    assert len(limit(tokenizer, [record("ཀ", "ཁཁ")], max_target_tokens=exactly)[0]) == 1
    with pytest.raises(UserError, match="leave none of 1 rows"):
        limit(tokenizer, [record("ཀ", "ཁཁ")], max_target_tokens=exactly - 1)


def test_the_line_names_all_that_was_touched(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [record("ཀ"), record("ཁ" * 2000), record("ག", "ང" * 99)]
    limits = Limits(max_prompt_tokens=1024, max_target_tokens=20, on_long="truncate")
    _, counts = limit(tokenizer, rows, max_prompt_tokens=1024, max_target_tokens=20, on_long="truncate")
    line = describe("headline/train", counts | {"bad_rows": 3, "shared_rows": 4, "shown_rows": 5}, limits)
    longest, target = f"{counts['longest_prompt']:,}", counts["longest_target"]
    assert line == (
        "headline/train: 2 rows, 3 bad rows skipped, 4 rows left out that share text with held-out rows, "
        "5 rows left out that prompts show, or rows like them, "
        f"1 prompts over 1,024 tokens (longest {longest}) truncated, "
        f"1 targets over 20 tokens (longest {target}) skipped"
    )


@pytest.mark.parametrize("setting", [{"max_prompt_tokens": 0}, {"max_target_tokens": -1}, {"on_long": "cut"}])
def test_impossible_limits_are_named(setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"limits.{next(iter(setting))} is"):
        Limits(**setting)  # type: ignore[arg-type]
