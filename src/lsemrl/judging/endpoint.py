"""A chat-completions endpoint: its settings, and one exchange with it, in so much time and of so many bytes.

What an endpoint sends is trusted in nothing: it may be endless, packed a thousandfold, in any encoding, or hold the key
that it was sent. The API key lives in the environment and in the request's header, and nowhere else.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import logging
import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from lsemrl.errors import UserError
from lsemrl.foreign import visible

_log = logging.getLogger(__name__)
_MOST = 4 * 2**20
"""Bytes that are read of an answer, as they come and unpacked."""


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
            usable = usable and url.port != 0 and " " not in self.base_url and httpx2.URL(self.base_url).host
        except (ValueError, httpx2.InvalidURL):
            usable, secret = None, ""
        if secret:
            raise UserError(
                "endpoint.base_url holds a user name or a query, which would end up in reports; give the plain "
                "address, and the key in the environment"
            )
        if not usable or url.fragment:
            raise UserError(f"endpoint.base_url is {self.base_url!r}; give an address like http://localhost:8000/v1")
        try:
            json.dumps(self.extra, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"endpoint.extra holds what JSON has no way to write ({error}); correct it") from error
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
class Answer:
    """What came back.

    Attributes:
        status: Of HTTP.
        headers: Their names in any case.
        text: The body, at most 4 MB of it; bytes that are not UTF-8 are replaced.
        whole: Whether that is all of it.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    whole: bool


class Trouble(Exception):
    """No reply came, which may pass.

    Args:
        problem: Why, to stand behind the address.
        wait: Seconds to wait before asking again, as the endpoint has it.
    """

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


class Line:
    """The line to an endpoint, and what may be said of what comes over it.

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
        if self._key and not _is_private(endpoint.base_url):
            _log.warning(
                "endpoint.base_url is %s: over plain http anyone on the way can read the API key in %s; use https, or "
                "unset the key", endpoint.base_url, endpoint.key_variable,
            )  # fmt: skip
        for name in ("httpx2", "httpcore2"):  # at DEBUG they write down headers, in which some servers repeat the key
            logging.getLogger(name).setLevel(logging.WARNING)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=None,  # the libraries' own limits are on each read: a server that trickles outlasts them
            follow_redirects=False,  # the key is for this host
            limits=httpx2.Limits(max_connections=None),  # a wait in the pool would count as the endpoint's time
        )

    @property
    def has_key(self) -> bool:
        """Whether a key is sent."""
        return bool(self._key)

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()

    async def post(self, prompt: str) -> Answer:
        """Ask once.

        Raises:
            Trouble: No whole answer came.
            UserError: Nobody knows the host.
        """
        endpoint = self.endpoint
        content = json.dumps(endpoint.body(prompt)).encode()  # ASCII, so that no odd character can spoil a request
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            async with (
                asyncio.timeout(endpoint.timeout),
                self._http.stream("POST", endpoint.url, content=content, headers=headers) as response,
            ):
                body = await _read(response)
        except TimeoutError:
            raise Trouble(f"gave no whole answer within endpoint.timeout, {endpoint.timeout:g} s") from None
        except httpx2.RequestError as error:
            if _unknown_host(error):
                host = urlsplit(endpoint.base_url).hostname
                raise UserError(f"endpoint.base_url names the host {host!r}, which nobody knows; correct it") from None
            raise Trouble(f"cannot be reached ({self.clean(f'{type(error).__name__}: {error}')})") from None
        return Answer(
            status=response.status_code,
            headers=response.headers,
            text=body[:_MOST].decode("utf-8-sig", "replace"),
            whole=len(body) <= _MOST,
        )

    def clean(self, text: str) -> str:
        """Foreign text fit for a sentence: without the key, in one line, not long."""
        text = " ".join(visible(self.redact(text)[:2000]).split())
        return text if len(text) <= 200 else f"{text[:200]}…"

    def redact(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self._key, "[API key]") if self._key else text


async def _read(response: httpx2.Response) -> bytes:
    """The body, unpacked; of one that is too long the beginning, and more of it than may be."""
    packed = bytearray()
    async for chunk in response.aiter_raw():  # the library unpacks a chunk whole, whatever comes of it
        packed += chunk
        if len(packed) > _MOST:
            break
    packing = response.headers.get("Content-Encoding", "").strip().lower()
    if packing in ("", "identity"):
        return bytes(packed)
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise Trouble(f"answers in the encoding {visible(packing)[:40]!r}, which was not asked for")
    try:
        return zlib.decompressobj(wbits=32 + zlib.MAX_WBITS).decompress(packed, _MOST + 1)
    except zlib.error:
        raise Trouble(f"answers with bytes that are no {packing}") from None


def _is_private(url: str) -> bool:
    """Whether nobody else can read what is sent there: by TLS, or because it stays on this machine."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        return parts.scheme == "https" or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unknown_host(error: BaseException) -> bool:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, socket.gaierror) and link.errno != socket.EAI_AGAIN:
            return True
        link = link.__cause__ or link.__context__
    return False
