"""Prompts in, replies out, through any OpenAI-compatible chat-completions endpoint.

Built for long lists of prompts over an unreliable line: what may pass is tried again, every reply is on disk before
the next question is asked, and what is on disk is not asked again. The API key lives in the environment and in the
request's header, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import re
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2

from lsemrl.errors import UserError

_log = logging.getLogger(__name__)
_PASSING = {408, 409, 425, 429}
"""Statuses below 500 that may pass by themselves."""
_ABOUT_THE_PROMPT = {400, 413, 422}
"""Statuses that may be about one prompt, too long or held back by a filter, and as often are about the settings."""
_HOPELESS = 10
"""Prompts without a usable reply after which the settings are to blame, if no prompt had one."""
_KEPT = "replies so far are kept: the same command goes on from there"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A chat-completions endpoint, and how to ask it.

    Raises:
        UserError: A field cannot be used.
    """

    base_url: str
    """Up to and including the version, such as http://localhost:8000/v1; without a key in it."""
    model: str
    """The model's name at the endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; where it is not set none is sent, as local servers like it."""
    temperature: float = 0.0
    """Sampling temperature."""
    max_tokens: int = 2048
    """Tokens a reply may have; models that think first need some."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request; null takes a field out. It is written to reports, so no secrets here."""
    concurrency: int = 4
    """Requests under way at once."""
    attempts: int = 6
    """Requests for one reply before giving up, the first included."""
    timeout: float = 120.0
    """Seconds for a request, from connecting to its last byte."""
    backoff: float = 1.0
    """Seconds before the second attempt, doubled for each further one; drawn between half of that and all of it."""
    max_wait: float = 120.0
    """Longest wait between attempts in seconds. An endpoint whose Retry-After asks for more is given up."""

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.base_url)
            usable, secret = url.scheme in ("http", "https") and url.hostname, "@" in url.netloc or url.query
        except ValueError:
            usable, secret = None, ""
        if secret:
            raise UserError(
                "endpoint.base_url holds a user name or a query, which would end up in reports; give the plain "
                "address, and the key in the environment"
            )
        if not usable or url.fragment:
            raise UserError(f"endpoint.base_url is {self.base_url!r}; give an address like http://localhost:8000/v1")
        if not self.model:
            raise UserError("endpoint.model is empty; give the model's name at the endpoint")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            raise UserError(
                "endpoint.key_variable is no name of an environment variable; give the name (letters, digits, "
                "underscores) of the variable that holds the key, not the key"
            )
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("attempts", 1)):
            if getattr(self, name) < least:
                raise UserError(f"endpoint.{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("temperature", "backoff", "max_wait"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"endpoint.{name} is {getattr(self, name)}; it must be a number of at least 0")
        if not 0 < self.timeout < float("inf"):
            raise UserError(f"endpoint.timeout is {self.timeout}; give a positive number of seconds")

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def body(self, prompt: str) -> dict[str, Any]:
        """The request that asks `prompt`."""
        fields = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **self.extra,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def digest(self, prompt: str) -> str:
        """A hash of all that decides a reply: the address and the whole request, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.url, self.body(prompt)], sort_keys=True).encode()).hexdigest()


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
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"replies cannot be kept in {folder} ({error.strerror}); name another folder") from error

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
        path = self._path(digest)
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            part.write_text(json.dumps([asdict(reply) for reply in replies]), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise UserError(
                f"replies cannot be kept in {self.folder} ({error.strerror}); make room, or name another folder"
            ) from error

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"


class ChatClient:
    """Asks an endpoint, one prompt a call; to be used as an async context.

    Args:
        endpoint: Where and how. The key is read from the environment here.

    Raises:
        UserError: The key has characters that no header can carry.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        if not all("!" <= character <= "~" for character in self._key):
            # Told here, because HTTP libraries quote the whole header when they refuse it.
            raise UserError(
                f"the environment variable {endpoint.key_variable} holds spaces or letters that are not ASCII, which "
                "no API key has; set it anew"
            )
        for name in ("httpx2", "httpcore2"):  # at DEBUG they write down headers, in which some servers repeat the key
            logging.getLogger(name).setLevel(logging.WARNING)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=None,  # the libraries' own limits are on each read: a server that trickles outlasts them
            follow_redirects=False,  # the key is for this host
            limits=httpx2.Limits(max_connections=None),  # a wait in the pool would count as the endpoint's time
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, prompt: str) -> Reply:
        """One reply, after as many attempts as it takes and the endpoint's settings allow.

        Raises:
            Unusable: The endpoint refuses this prompt, or answers it with something that is no chat completion.
            UserError: The endpoint cannot be used, or its troubles did not pass.
        """
        endpoint = self.endpoint
        content = json.dumps(endpoint.body(prompt)).encode()  # ASCII, so that no odd character can spoil a request
        for attempt in range(1, endpoint.attempts + 1):
            asked_to_wait, reply, answered = 0.0, None, False
            try:
                async with asyncio.timeout(endpoint.timeout):
                    response = await self._http.post(
                        endpoint.url, content=content, headers={"Content-Type": "application/json"}
                    )
            except TimeoutError:
                problem = f"gave no whole answer within endpoint.timeout, {endpoint.timeout:g} s"
            except httpx2.RequestError as error:
                if _unknown_host(error):
                    host = urlsplit(endpoint.base_url).hostname
                    raise UserError(
                        f"endpoint.base_url names the host {host!r}, which nobody knows; correct it"
                    ) from None
                problem = f"cannot be reached ({self._clean(f'{type(error).__name__}: {error}')})"
            else:
                answered = response.is_success
                if answered:
                    reply, problem = self._reply(response)
                else:
                    problem = self._check_status(response)
                    asked_to_wait = retry_after(response.headers.get("Retry-After"))
            if reply is not None:
                return reply
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

    def _check_status(self, response: httpx2.Response) -> str:
        """What is wrong, if it may pass.

        Raises:
            Unusable: The prompt may be to blame.
            UserError: Asking again would not help.
        """
        endpoint, status = self.endpoint, response.status_code
        detail = self._detail(response)
        if status in _PASSING or status >= 500:
            return f"answers {status} ({detail})"
        if status in _ABOUT_THE_PROMPT:
            raise Unusable(f"{endpoint.url} answers {status} ({detail})")
        if status in (401, 403):  # what it says is not quoted: some endpoints repeat half of the key
            if not self._key:
                raise UserError(
                    f"{endpoint.url} answers {status} and no API key was sent: put one in the environment variable "
                    f"{endpoint.key_variable}, or name another by endpoint.key_variable"
                )
            raise UserError(
                f"{endpoint.url} answers {status} to the API key in {endpoint.key_variable}: set another, or see what "
                f"the key allows ({_KEPT})"
            )
        if response.has_redirect_location or 300 <= status < 400:
            target = self._clean(response.headers.get("Location", "nowhere"))
            raise UserError(f"{endpoint.url} redirects to {target}; set endpoint.base_url to where it really is")
        if status == 404:
            raise UserError(
                f"{endpoint.url} answers 404 ({detail}): endpoint.base_url must be what comes before "
                f"/chat/completions, and the endpoint must know the model {endpoint.model!r}"
            )
        raise UserError(f"{endpoint.url} answers {status} ({detail}); correct the settings of the endpoint")

    def _reply(self, response: httpx2.Response) -> tuple[Reply | None, str]:
        """The reply in a response, or what is wrong with it."""
        try:
            payload = response.json()
            choice = payload["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, RecursionError):
            return None, f"answers with no JSON ({self._clean(response.text) or 'an empty body'})"
        except (KeyError, IndexError, TypeError):
            return None, f"answers with JSON that is no chat completion ({self._detail(response)})"
        if text is None:  # a refusal, or a model that thought until its tokens were used up
            text = ""
        if not isinstance(text, str):
            return None, f"answers with JSON that is no chat completion ({self._detail(response)})"
        return Reply(text=self._redact(printable(text)), cut=choice.get("finish_reason") == "length"), ""

    def _detail(self, response: httpx2.Response) -> str:
        """What the endpoint says is wrong: its error message if it has the usual form, else its text."""
        try:
            error = response.json()["error"]
            message = error["message"] if isinstance(error, dict) else error
        except (ValueError, RecursionError, KeyError, TypeError):
            message = None
        return self._clean(message if isinstance(message, str) else response.text) or "without a word"

    def _clean(self, text: str) -> str:
        """Foreign text fit for a sentence: without the key, in one line, not long."""
        text = " ".join(self._redact(printable(text)).split())
        return text if len(text) <= 200 else f"{text[:200]}…"

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "[API key]") if self._key else text


def converse(
    prompts: Sequence[str],
    endpoint: Endpoint,
    cache: ReplyCache,
    *,
    accepts: Callable[[str], bool],
    tries: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Conversation]:
    """Ask every prompt until a reply is acceptable, at most `tries` times; equal prompts are asked once.

    Args:
        prompts: N texts.
        endpoint: Whom to ask.
        cache: Every reply goes here at once; those that are here are not asked for again.
        accepts: Whether a reply's text will do.
        tries: Replies to hear for one prompt, at least 1.
        progress: Told how many distinct prompts are done, of how many.

    Returns:
        N conversations, in the order of the prompts. Some may have a problem instead of replies, but not all.

    Raises:
        UserError: The endpoint cannot be used, or its troubles did not pass; replies so far are in the cache.
        KeyboardInterrupt: The user stopped it; likewise.
    """
    return asyncio.run(_converse(prompts, endpoint, cache, accepts, tries, progress))


async def _converse(
    prompts: Sequence[str],
    endpoint: Endpoint,
    cache: ReplyCache,
    accepts: Callable[[str], bool],
    tries: int,
    progress: Callable[[int, int], None],
) -> list[Conversation]:
    def finished(replies: tuple[Reply, ...]) -> bool:
        return bool(replies) and (len(replies) >= tries or accepts(replies[-1].text))

    known = {prompt: cache.get(endpoint.digest(prompt)) for prompt in prompts}
    done = {prompt: Conversation(replies=replies) for prompt, replies in known.items() if finished(replies)}
    waiting = iter([prompt for prompt in known if prompt not in done])
    problems: list[str] = []

    async def work(client: ChatClient) -> None:
        for prompt in waiting:
            replies, problem = known[prompt], ""
            while not finished(replies):
                try:
                    replies += (await client.ask(prompt),)
                except Unusable as error:
                    problem = str(error)
                    problems.append(problem)
                    break
                cache.put(endpoint.digest(prompt), replies)
            done[prompt] = Conversation(replies=replies, problem=problem)
            progress(len(done), len(known))
            if len(problems) >= _HOPELESS and len(problems) == len(done):
                raise UserError(problems[-1])

    progress(len(done), len(known))
    try:
        async with ChatClient(endpoint) as client, asyncio.TaskGroup() as group:
            for _ in range(endpoint.concurrency):
                group.create_task(work(client))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if problems and len(problems) == len(done):
        raise UserError(problems[-1])
    return [done[prompt] for prompt in prompts]


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


def _unknown_host(error: BaseException) -> bool:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, socket.gaierror) and link.errno != socket.EAI_AGAIN:
            return True
        link = link.__cause__ or link.__context__
    return False
