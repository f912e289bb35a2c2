"""Chat templates: programs that came with a model, and are run as such.

A template is tried once in a process of its own, with limits on its time and memory, before it is run in this one: no
timer stops a sum of a billion digits, and no check of a text's length comes before the text is there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from lsemrl.errors import reason_of
from lsemrl.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS, MEMORY, CHARACTERS = 10.0, 1 << 30, 1_000_000
"""What a template may take for one prompt: time, bytes, and characters of its own."""


TODAY = datetime(2024, 7, 26)
"""To templates that show the date: what Llama's show where they are not told one."""
_ASKED = "strftime_now"
_SHORT, _TOLD = "dHIjmMSUWy", "aAbBcdDeFGHIjmMnprRStTuUVwWxXyYzZ%"
"""Codes of strftime, those that may go without a zero before them, and all; %% comes last."""

_tried: set[str] = set()


def shows_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template asks which day it is."""
    return _ASKED in tokenizer.get_chat_template()


def of_one_day(template: str) -> str:
    """`template`, to which it is always `TODAY`.

    Else prompts would be others tomorrow: no run could be gone on with, nor measurements of two days be compared.
    """
    if _ASKED not in template:
        return template
    told = {f"%-{code}": TODAY.strftime(f"%{code}").lstrip("0") or "0" for code in _SHORT}
    told |= {f"%{code}": TODAY.strftime(f"%{code}") for code in _TOLD}
    said = "".join(f"|replace('{code}', '{text}')" for code, text in told.items())
    # The end of the line goes with the tag before it, so that the template begins as it does without.
    return f"{{% macro {_ASKED}(format) %}}{{{{ format{said} }}}}{{% endmacro %}}\n{template}"


def write_chat(
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    turns: Sequence[tuple[str, str]],
    instruction: str,
    *,
    enable_thinking: bool,
) -> str:
    """One prompt by the tokenizer's chat template, up to where the answer begins.

    Args:
        tokenizer: It has a chat template.
        system: System message, if there is one.
        turns: What the user said and was answered before.
        instruction: What the user says.
        enable_thinking: Handed to the template, under the two names that templates know it by.

    Raises:
        UserError: The template fails, takes too long or writes too much, or leaves out what it was given.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for asked, said in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    messages.append({"role": "user", "content": instruction})

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=of_one_day(tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=enable_thinking,
                thinking=enable_thinking,
            )
        )

    name = f"the chat template of the tokenizer {tokenizer.name_or_path!r}"
    # Whether there are a system message and turns decides on which way a template goes; what they say is its data.
    way = repr((tokenizer.chat_template, enable_thinking, bool(system), len(turns)))
    if way not in _tried:
        _try_out(render, name, sum(len(message["content"]) for message in messages))
        _tried.add(way)
    try:
        prompt = render()
    except Exception as error:
        reason = reason_of(error)
        leave_out = "leave out template.system, or " if system else ""
        raise UserError(
            f"{name} refuses the prompt ({reason}); {leave_out}set template.chat to false, or mend the template"
        ) from error
    if left_out := _left_out(prompt, system or "", turns, instruction):
        field, text = left_out
        remedy = {"template.system": "put it into template.template, or ", "template.shots": "set it to 0, or "}.get(
            field, ""
        )
        raise UserError(
            f"{name} leaves out {field} ({' '.join(text.split())[:60]!r}), so that the policy would not see it; "
            f"{remedy}set template.chat to false, or mend the template"
        )
    return prompt


def turn_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token with which the chat template ends an answer; None where there is no template or no such token."""
    asked, said = "What is the time?", "It is noon."
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    try:
        prompt = write_chat(tokenizer, None, [(asked, said)], asked, enable_thinking=False)  # it comes to an end
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # it takes no turns
        return None
    after = text.partition(said)[2].lstrip()
    ends = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = next((end for end in sorted(ends, key=len, reverse=True) if after.startswith(end)), None)
    # Some ask for an answer behind everything.
    return None if found and prompt.rstrip().endswith(found) else found


def _left_out(prompt: str, system: str, turns: Sequence[tuple[str, str]], instruction: str) -> tuple[str, str] | None:
    """What does not stand in `prompt`, whatever became of its white space, and by which name it goes."""
    left = "".join(prompt.split())
    said = [("the instruction with its text", instruction)]
    said += [("template.shots", text) for turn in reversed(turns) for text in reversed(turn)]
    for field, text in [*said, ("template.system", system)]:
        own = "".join(text.split())
        if own not in left:
            return field, text
        left = "\n".join(left.rsplit(own, 1)) if own else left  # for others may say the same words
    return None


def _try_out(render: Callable[[], str], name: str, given: int) -> None:
    """Refuse a template that does not come to an end; only where a process can be forked cheaply and safely."""
    if sys.platform != "linux":
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_render_within_limits, args=(render, sender))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child touches nothing that threads may hold
        child.start()
    sender.close()
    try:
        length = receiver.recv() if receiver.poll(SECONDS) else None
    except EOFError:
        child.join()
        # Killed for its memory; or it never came to the template, of which nothing is known then.
        length = CHARACTERS + given + 1 if (child.exitcode or 0) < 0 else 0
    child.kill()
    child.join()
    if length is None:
        raise UserError(
            f"{name} has not written a prompt after {SECONDS:g} seconds; mend the template, or set template.chat to "
            "false"
        )
    if length > CHARACTERS + given:
        raise UserError(
            f"{name} writes over {CHARACTERS:,} characters around a text of {given:,}; mend the template, or set "
            "template.chat to false"
        )


def _render_within_limits(render: Callable[[], str], sender: Connection) -> None:
    """In the child: send how long the prompt is; 0 where the template fails, which it will do again."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError):  # a stricter limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        length = len(render())
    except MemoryError:
        length = sys.maxsize
    except Exception:
        length = 0
    sender.send(length)
