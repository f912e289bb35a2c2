"""One look at what carries the text, before weights are read: tokenizers, prompts, lengths, tokens that end and pad.

A tokenizer without a script trains, and is rewarded, without a word: every sentence is then the same row of unknown
tokens. What cannot work is refused here, and what works in part is told with its share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import regex
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lsemrl.data import thoughts
from lsemrl.data.carried import Carried, alike, carried, changed, spaced
from lsemrl.data.chat import turn_end
from lsemrl.data.mixed import REPLAY
from lsemrl.modules.spans import cut_short, fitting, spans_of, whole_row, with_answer
from lsemrl.rewards.encoder import EncoderUse, length_limit
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from lsemrl.modules.policy import Policy

MOST, SOME = 0.5, 0.01
"""Shares from which on what is lost is refused, and told."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one tokenizer makes of one kind of text.

    Attributes:
        by: The field that names the tokenizer's model, and its value.
        what: The texts: references, sources or wording.
        carried: Letters and words.
        confused: Share in [0, 1] of the texts that are read, as far as they are read, as another of them is.
    """

    by: str
    what: str
    carried: Carried
    confused: float = 0.0

    @property
    def figures(self) -> str:
        """In short."""
        one = self.carried
        return f"{self.what} {one.tokens_per_unit:.2f} tokens per {one.unit}, {one.unknown:.1%} unknown"

    @property
    def refusal(self) -> str | None:
        """A sentence, if most is lost."""
        lost = self.lost(MOST)
        return lost and f"{lost}; name a model or an encoder that knows the script, and reads enough of a text"

    @property
    def warning(self) -> str | None:
        """A line, if some is lost."""
        return (lost := self.lost(SOME)) and f"warning: {lost}"

    def lost(self, least: float) -> str | None:
        """A sentence about what is lost, if its share is at least `least`."""
        one = self.carried
        if one.unknown >= least:
            such = f" (such as {one.unread[0]!r})" if one.unread else ""
            return f"the tokenizer of {self.by} has no token for {one.unknown:.1%} of the letters of {self.what}{such}"
        if one.alike >= least:
            units = f"{one.unit}s"
            return f"the tokenizer of {self.by} reads {one.alike:.1%} of the {units} of {self.what} as other {units}"
        if self.confused >= least:
            return f"{self.by} reads {self.confused:.1%} of {self.what} as others of them"
        return None


@dataclass(frozen=True, kw_only=True)
class Legibility:
    """What carries the text, in numbers.

    Attributes:
        readings: Of the policy's tokenizer first, then of encoders.
        rows: How many were looked at.
        changed: Ids of those whose reference, said by the policy, would be decoded to another text.
        garbled: Ids of those of them that lose or change letters.
        thought: The mark of a thought, if most references would be learned as the inside of one.
        ends: The token that ends a text, and the one that pads it.
        turn_end: The one that ends an answer by the chat template, if prompts are made by it and it has one.
    """

    readings: tuple[Reading, ...]
    rows: int
    changed: tuple[str, ...]
    garbled: tuple[str, ...]
    thought: str | None
    ends: tuple[str, str]
    turn_end: str | None

    @property
    def refusals(self) -> list[str]:
        """What cannot work, a sentence each."""
        # The wording is one for all rows: what of it is unknown can be learned.
        readings = [reading for reading in self.readings if reading.what != "wording"]
        found = [sentence for reading in readings if (sentence := reading.refusal)]
        if len(self.garbled) > MOST * self.rows:
            found.append(
                f"{len(self.garbled):,} of {self.rows:,} references (such as row {self.garbled[0]}) would come back "
                f"from the tokenizer of {self.readings[0].by} with other letters, so that no output could be right; "
                "name a model whose tokenizer decodes what it encodes"
            )
        if self.thought:
            found.append(
                f"prompts end inside a thought ({self.thought}), and the references, which do not end it, would be "
                "learned as thoughts; set template.enable_thinking to false, or end the prompt otherwise"
            )
        return found

    @property
    def warnings(self) -> list[str]:
        """What else is to be known of them, a sentence each."""
        told = [line.removeprefix("warning: ") for line in self.lines if line.startswith("warning: ")]
        return [line for line in told if not any(sentence.startswith(line) for sentence in self.refusals)]

    @property
    def spelled(self) -> str | None:
        """A sentence where the policy's tokenizer has pieces of letters for references, not letters or words."""
        first = self.readings[0]
        if first.what != "references" or first.carried.tokens_per_letter <= 1:
            return None
        return (
            f"{first.carried.tokens_per_letter:.1f} tokens for a letter: the tokenizer of {first.by} spells references "
            "by bytes; a base whose vocabulary has the script is cheaper to train and to sample from"
        )

    @property
    def lines(self) -> list[str]:
        """The same to be read, and a line for everything that is carried in part only."""
        ends, pads = self.ends
        tokens = f"ends with {ends}, pads with {pads}" if pads != ends else f"ends with {ends}, and pads with it too"
        by = dict.fromkeys(reading.by for reading in self.readings)
        figures = {field: "; ".join(one.figures for one in self.readings if one.by == field) for field in by}
        lines = [f"text by {field}: {figure}" for field, figure in figures.items()]
        lines[0] += f"; {self.rows - len(self.changed):,} of {self.rows:,} references come back; {tokens}"
        lines += [reading.warning for reading in self.readings if reading.warning]
        lines += [f"note: {self.spelled}"] if self.spelled else []
        if self.turn_end not in (None, ends):
            lines.append(
                f"warning: the chat template ends an answer with {self.turn_end}, the tokenizer a text with {ends}; "
                f"answers are taught to end with {ends}, unless eos_token in the model's tokenizer_config.json is "
                f"{self.turn_end}"
            )
        if self.changed:
            named = f"{', '.join(self.changed[:3])}{', ...' if len(self.changed) > 3 else ''}"
            lines.append(
                f"warning: {len(self.changed):,} of {self.rows:,} references would come back from the policy's "
                f"tokenizer as other texts ({named})"
            )
        return lines


def look(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    encoders: Mapping[str, EncoderUse],
    *,
    learned: bool,
) -> Legibility:
    """Look at what carries `examples`.

    Args:
        model: The policy, as it is named.
        tokenizer: Its own.
        examples: Rows of whatever the command uses; so many as `carried.ROWS` are looked at.
        encoders: Sentence encoders, by the field that names each and its value.
        learned: Whether references are learned.
    """
    rows = spaced(examples)
    answered = spaced([row for row in examples if row.references])  # which may be few among many sentences
    texts = {
        "references": [row.reference for row in answered],
        "sources": [row.source for row in rows],
        "wording": _wordings(tokenizer, rows),
    }
    encoded = {
        "references": list(dict.fromkeys(text for row in answered for text in row.references)),
        "sources": list(dict.fromkeys(texts["sources"])),
    }
    by = f"policy.model {model!r}"
    readings = [Reading(by=by, what=what, carried=carried(tokenizer, own)) for what, own in texts.items() if own]
    readings += [
        reading
        for field, one in encoders.items()
        for what in ("references", "sources")[: 1 + one.of_sources]
        if (reading := read_by_encoder(field, one.encoder, encoded[what], what))
    ]
    others, garbled = changed(tokenizer, answered)
    inside = [row for row in answered if thoughts.opened(row.prompt) and not thoughts.answer(row.reference, row.prompt)]
    return Legibility(
        readings=tuple(readings),
        rows=len(answered),
        changed=tuple(others),
        garbled=tuple(garbled),
        thought=thoughts.opened(inside[0].prompt) if learned and len(inside) > MOST * len(answered) else None,
        ends=(str(tokenizer.eos_token), str(tokenizer.pad_token)),
        turn_end=turn_end(tokenizer) if _by_chat(tokenizer, rows) else None,
    )


def _by_chat(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> bool:
    """Whether prompts look as chat templates write them: with tokens that stand for themselves."""
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return bool(rows) and any(mark in rows[0].prompt.removeprefix(str(tokenizer.bos_token)) for mark in marks)


def _wordings(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> list[str]:
    """What prompts say around sources, without the tokens that stand for themselves."""
    marks = regex.compile(
        "|".join(map(regex.escape, sorted(tokenizer.added_tokens_encoder, key=len, reverse=True))) or "$^"
    )
    said = (marks.sub("\n", text) for text in dict.fromkeys(row.prompt.replace(row.source, "\n") for row in rows))
    return [text for text in said if text.strip()]


def read_by_encoder(
    field: str, encoder: SentenceTransformer, texts: Sequence[str], what: str = "references"
) -> Reading | None:
    """What `encoder` makes of different texts; None if its tokenizer is of an unknown kind."""
    tokenizer = encoder.tokenizer
    if isinstance(tokenizer, Tokenizer):  # of a static embedding, whose own must not be touched
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()))
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not texts:
        return None
    if getattr(encoder[0], "do_lower_case", False):
        texts = [text.lower() for text in texts]
    limit = length_limit(encoder)
    read = tokenizer(list(texts), truncation=limit is not None, max_length=limit, padding=False, verbose=False)
    return Reading(by=field, what=what, carried=carried(tokenizer, texts), confused=alike(texts, read["input_ids"]))


def settled(found: Legibility) -> list[str]:
    """The lines of `found`.

    Raises:
        UserError: Something cannot work.
    """
    if found.refusals:
        raise UserError(found.refusals[0])
    return found.lines


def check_run(
    policy: Policy,
    data: Any,
    splits: Sequence[str],
    encoders: Mapping[str, EncoderUse],
    new: int,
    *,
    learned: bool = False,
) -> list[str]:
    """What carries the text of a run, as lines.

    Args:
        policy: Its weights are not asked for.
        data: Prepared rows and their report (see `data.base`).
        splits: Those that are used, of train, validation and test.
        encoders: As in `look`.
        new: Longest output, in tokens.
        learned: Whether the references of train are learned, rather than its prompts answered.

    Raises:
        UserError: Something cannot work, or there are no rows.
    """
    spans, cut = dict[str, int](), list[str]()
    for split in splits:
        replayed = [name for name in data.report if name.startswith(REPLAY)] if split == "train" else []
        counts = [data.report[name] for name in (split, *replayed)]
        prompt, row = (max(each[key] for each in counts) for key in ("longest_prompt_kept", "longest_row_kept"))
        if prompt and learned and split == "train":
            spans |= whole_row(split, row)
        elif prompt:
            spans |= with_answer(split, prompt, new)
            cut += cut_short(split, policy.tokenizer, getattr(data, f"{split}_examples"), new)
    examples = [row for split in splits for row in getattr(data, f"{split}_examples")]
    fits = fitting(policy.settings.model, policy.config, spans)
    if not examples:  # there always are some to train on
        raise UserError("data has no {0} rows; give it a {0} source, or raise splits.{0}_fraction".format(splits[0]))
    found = look(policy.settings.model, policy.tokenizer, examples, encoders, learned=learned and "train" in splits)
    return [*settled(found), *fits, *cut]


def check_examples(
    policy: Policy,
    rows: Mapping[str, Sequence[Example]],
    encoders: Mapping[str, EncoderUse],
    new: int,
    *,
    unanswered: Collection[str] = (),
) -> list[str]:
    """What carries rows by their names, of which encoders read the first and `unanswered` are only read, as lines.

    Raises:
        UserError: Something cannot work.
    """
    model, lines = policy.settings.model, []
    for at, (name, examples) in enumerate(rows.items()):
        found = look(model, policy.tokenizer, examples, {} if at else encoders, learned=False)
        spans = spans_of(name, policy.tokenizer, examples, None if name in unanswered else new)
        fits = fitting(model, policy.config, spans)
        cut = [] if name in unanswered else cut_short(name, policy.tokenizer, examples, new)
        lines += [*(f"{name}: {line}" for line in settled(found)), *fits, *cut]
    return lines
