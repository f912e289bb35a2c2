"""Prompts in, replies out, through any OpenAI-compatible chat-completions endpoint.

Built for long lists of prompts over an unreliable line: what may pass is tried again, every reply is on disk before
the next question is asked, and what is on disk is not asked again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NoReturn

from lsemrl.errors import UserError
from lsemrl.files import make_folder, write_text
from lsemrl.judging.endpoint import Answer, Endpoint, Line, Trouble

_log = logging.getLogger(__name__)
_PASSING = {408, 409, 425, 429}
"""Statuses below 500 that may pass by themselves."""
_ABOUT_THE_PROMPT = {400, 413, 422}
"""Statuses that may be about one prompt, too long or held back by a filter, and as often are about the settings."""
_HOPELESS = 10
"""Prompts without a usable reply after which the settings are to blame, if no prompt had one."""
_KEPT = "replies so far are kept: the same command goes on from there"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model said.

    Attributes:
        text: Its answer; empty if it gave none.
        cut: Whether it ran into the limit on tokens.
    """

    text: str
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """All replies to one prompt.

    Attributes:
        replies: In the order they came; if one was acceptable, it is the last.
        problem: Why there is no reply at all; empty if there is.
    """

    replies: tuple[Reply, ...]
    problem: str = ""


class Unusable(Exception):
    """The endpoint works, but gives no usable reply to this prompt."""


class ReplyCache:
    """Replies by the hash of what was asked, a JSON file each: whole or absent, however many processes write.

    Args:
        folder: Where the files lie; made here.

    Raises:
        UserError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)

    def get(self, digest: str) -> tuple[Reply, ...]:
        """The replies that were put; none if there are none, or the file is damaged."""
        try:
            rows = json.loads(self._path(digest).read_text(encoding="utf-8"))
            replies = tuple(Reply(**row) for row in rows)
        except (OSError, ValueError, TypeError):
            return ()
        return replies if all(isinstance(reply.text, str) for reply in replies) else ()

    def put(self, digest: str, replies: tuple[Reply, ...]) -> None:
        """Keep `replies` in place of what is there.

        Raises:
            UserError: The file cannot be written; going on would pay for replies that are lost.
        """
        write_text(self._path(digest), json.dumps([asdict(reply) for reply in replies]))

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"


class ChatClient:
    """Asks an endpoint, one prompt a call; to be closed.

    Args:
        endpoint: Where and how. The key is read from the environment here.

    Raises:
        UserError: The key has characters that no header can carry.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self._line = endpoint, Line(endpoint)

    async def aclose(self) -> None:
        """Hang up."""
        await self._line.close()

    async def ask(self, prompt: str) -> Reply:
        """One reply, after as many attempts as it takes and the endpoint's settings allow.

        Raises:
            Unusable: The endpoint refuses this prompt, or answers it with something that is no chat completion.
            UserError: The endpoint cannot be used, or its troubles did not pass.
        """
        endpoint = self.endpoint
        for attempt in range(1, endpoint.attempts + 1):
            answered = False
            try:
                answer = await self._line.post(prompt)
                answered = 200 <= answer.status < 300
                if answered:
                    return self._reply(answer)
                self._refuse(answer)
            except Trouble as trouble:
                problem, asked_to_wait = str(trouble), trouble.wait
            if attempt == endpoint.attempts:
                break
            wait = min(endpoint.backoff * 2 ** (attempt - 1), endpoint.max_wait) * random.uniform(0.5, 1.0)
            if asked_to_wait > endpoint.max_wait:
                raise UserError(
                    f"{endpoint.url} {problem} and asks to wait {asked_to_wait:.0f} s, longer than endpoint.max_wait, "
                    f"{endpoint.max_wait:g} s; try again later ({_KEPT})"
                )
            wait = max(wait, asked_to_wait)
            _log.warning("%s %s; attempt %d in %.1f s", endpoint.url, problem, attempt + 1, wait)
            await asyncio.sleep(wait)
        times = f"{endpoint.attempts} times" if endpoint.attempts > 1 else "once"
        if answered:
            raise Unusable(f"{endpoint.url} {problem}, asked {times}; endpoint.base_url may be no chat endpoint's")
        raise UserError(
            f"{endpoint.url} {problem}, asked {times}; see that it is up, or raise endpoint.attempts or "
            f"endpoint.timeout ({_KEPT})"
        )

    def _refuse(self, answer: Answer) -> NoReturn:
        """Say what a status that is no success means.

        Raises:
            Trouble: It may pass.
            Unusable: The prompt may be to blame.
            UserError: Asking again would not help.
        """
        endpoint, status = self.endpoint, answer.status
        detail = self._detail(answer)
        if status in _PASSING or status >= 500:
            raise Trouble(f"answers {status} ({detail})", retry_after(answer.headers.get("Retry-After")))
        if status in _ABOUT_THE_PROMPT:
            raise Unusable(f"{endpoint.url} answers {status} ({detail})")
        if status in (401, 403):  # what it says is not quoted: some endpoints repeat half of the key
            if not self._line.has_key:
                raise UserError(
                    f"{endpoint.url} answers {status} and no API key was sent: put one in the environment variable "
                    f"{endpoint.key_variable}, or name another by endpoint.key_variable"
                )
            raise UserError(
                f"{endpoint.url} answers {status} to the API key in {endpoint.key_variable}: set another, or see what "
                f"the key allows ({_KEPT})"
            )
        if 300 <= status < 400:
            target = self._line.clean(answer.headers.get("Location", "nowhere"))
            raise UserError(f"{endpoint.url} redirects to {target}; set endpoint.base_url to where it really is")
        if status == 404:
            raise UserError(
                f"{endpoint.url} answers 404 ({detail}): endpoint.base_url must be what comes before "
                f"/chat/completions, and the endpoint must know the model {endpoint.model!r}"
            )
        raise UserError(f"{endpoint.url} answers {status} ({detail}); correct the settings of the endpoint")

    def _reply(self, answer: Answer) -> Reply:
        """The reply in an answer.

        Raises:
            Trouble: There is none.
            Unusable: It is too long to be one.
        """
        if not answer.whole:
            raise Unusable(f"{self.endpoint.url} answers with more than 4 MB, which no chat completion has")
        try:
            choice = json.loads(answer.text)["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, RecursionError):
            raise Trouble(f"answers with no JSON ({self._line.clean(answer.text) or 'an empty body'})") from None
        except (KeyError, IndexError, TypeError):
            raise Trouble(f"answers with JSON that is no chat completion ({self._detail(answer)})") from None
        text = text or ""  # None is a refusal, or a model that thought until its tokens were used up
        return Reply(text=self._line.redact(printable(text)), cut=choice.get("finish_reason") == "length")

    def _detail(self, answer: Answer) -> str:
        """What the endpoint says is wrong: its error message if it has the usual form, else its text."""
        try:
            error = json.loads(answer.text)["error"]
            message = error["message"] if isinstance(error, dict) else error
        except (ValueError, RecursionError, KeyError, TypeError):
            message = None
        return self._line.clean(message if isinstance(message, str) else answer.text) or "without a word"


def converse(
    prompts: Sequence[str],
    endpoint: Endpoint,
    cache: ReplyCache,
    *,
    accepts: Callable[[Reply], bool],
    tries: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Conversation]:
    """Ask every prompt until a reply is acceptable, at most `tries` times; equal prompts are asked once.

    Args:
        prompts: N texts.
        endpoint: Whom to ask.
        cache: Every reply goes here at once; those that are here are not asked for again.
        accepts: Whether a reply will do.
        tries: Replies to hear for one prompt, at least 1.
        progress: Told how many distinct prompts are done, of how many.

    Returns:
        N conversations, in the order of the prompts. Some may have a problem instead of replies, or no acceptable one,
        but not all.

    Raises:
        UserError: The endpoint cannot be used, gives no acceptable reply, or its troubles did not pass; replies so far
            are in the cache.
        KeyboardInterrupt: The user stopped it; likewise.
    """

    def finished(replies: tuple[Reply, ...]) -> bool:
        return bool(replies) and (len(replies) >= tries or accepts(replies[-1]))

    known = {prompt: cache.get(endpoint.digest(prompt)) for prompt in prompts}
    done = {prompt: Conversation(replies=replies) for prompt, replies in known.items() if finished(replies)}
    waiting = iter([prompt for prompt in known if prompt not in done])
    # Of those without an acceptable reply, which may be known of before: the same command stops here again.
    problems = [_unacceptable(each.replies[-1], endpoint) for each in done.values() if not accepts(each.replies[-1])]

    async def work(client: ChatClient) -> None:
        for prompt in waiting:
            replies, problem = known[prompt], ""
            while not finished(replies):
                try:
                    replies += (await client.ask(prompt),)
                except Unusable as error:
                    problem = str(error)
                    break
                cache.put(endpoint.digest(prompt), replies)
            if problem or not accepts(replies[-1]):
                problems.append(problem or _unacceptable(replies[-1], endpoint))
            done[prompt] = Conversation(replies=replies, problem=problem)
            progress(len(done), len(known))
            if len(problems) >= _HOPELESS and len(problems) == len(done):
                raise UserError(problems[-1])

    async def work_all() -> None:
        async with aclosing(ChatClient(endpoint)) as client, asyncio.TaskGroup() as group:
            for _ in range(endpoint.concurrency):
                group.create_task(work(client))

    progress(len(done), len(known))
    try:
        asyncio.run(work_all())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if problems and len(problems) == len(done):
        raise UserError(problems[-1])
    return [done[prompt] for prompt in prompts]


def _unacceptable(reply: Reply, endpoint: Endpoint) -> str:
    """What is wrong where no prompt has an acceptable reply, by the last of one."""
    if reply.cut:
        return (
            f"{endpoint.url} gives replies that are cut at endpoint.max_tokens, {endpoint.max_tokens}; raise it, or "
            "have the model think less by endpoint.extra"
        )
    said = " ".join(reply.text.split())
    return (
        f"{endpoint.url} gives replies without a verdict (one ends with {said[-80:]!r}); name another model, or ask by "
        "--prompt for a last line such as Verdict: A"
    )


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as a number or as a date; 0 if it says nothing usable."""
    if value is None:
        return 0.0
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value.strip()):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def printable(text: str) -> str:
    """`text` as UTF-8 can hold it: JSON may spell halves of characters, which no file can."""
    return text.encode("utf-8", "replace").decode()
