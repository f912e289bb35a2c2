"""A vLLM server over HTTP: one exchange at a time, tried again where nobody answers, and its sleep."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import httpx2

from lsemrl.errors import UserError, reason_of
from lsemrl.foreign import visible
from lsemrl.modules.sampling import Sampling

log = logging.getLogger(__name__)
_OLDEST = (0, 10, 2)
"""The first vLLM that gives token ids back."""
_ATTEMPTS, _PATIENCE = 7, 60.0
"""Of one exchange, and the seconds from which on there is no other: time to start a server again."""


class ServerGone(UserError):
    """A server that no longer answers; the run stands before the step that asked it."""


class Refused(UserError):
    """What a server says no to, with the `code` of HTTP."""

    # Ranks tell each other by pickle, which makes an error of its sentence and then adds the rest.
    def __init__(self, sentence: str, code: int = 0) -> None:
        super().__init__(sentence)
        self.code = code


class Server:
    """A server that is there.

    Attributes:
        url: Where it listens.
        version: Which vLLM it is.
        sleeps: Whether it sleeps while nobody asks it.

    Raises:
        UserError: No vLLM, or one that is too old.
        ServerGone: Nobody answers.
    """

    def __init__(self, sampling: Sampling) -> None:
        """See the class."""
        self.url, self.sleeps = sampling.server.rstrip("/"), sampling.server_sleeps
        self._timeout = sampling.server_timeout
        limits = httpx2.Timeout(self._timeout, connect=min(self._timeout, _PATIENCE))
        self._http = httpx2.Client(timeout=limits, limits=httpx2.Limits(max_connections=None))
        self.version = str(self.ask("GET", "/version", attempts=1).get("version", ""))
        numbers = tuple(map(int, re.findall(r"\d+", self.version)[:3]))
        if numbers < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise UserError(
                f"sampling.server {self.url} says it is vLLM {visible(self.version)[:40]!r}; it must be {oldest} or "
                "later, which give token ids back"
            )

    def sleep(self) -> None:
        """Have it keep its weights outside the GPU and forget keys and values, if it sleeps at all.

        Raises:
            UserError: It cannot.
            ServerGone: It does not answer.
        """
        if self.sleeps and not self.ask("GET", "/is_sleeping").get("is_sleeping"):
            self.ask("POST", "/sleep?level=1")

    def wake(self) -> None:
        """Have it ready to be asked.

        Raises:
            UserError: It refuses.
            ServerGone: It does not answer.
        """
        if self.sleeps:
            self.ask("POST", "/wake_up")

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, attempts: int = _ATTEMPTS
    ) -> dict[str, Any]:
        """One exchange, tried again where nobody answers.

        Raises:
            UserError: The server refuses.
            ServerGone: There is no answer.
        """
        begun = time.monotonic()
        for attempt in range(attempts):
            try:
                response = self._http.request(method, self.url + path, json=body)
                reason = f"status {response.status_code}: {_said(response)}"
                if response.status_code < 300:
                    return _json(response)
                if response.status_code < 500:
                    break
            except httpx2.InvalidURL as error:
                raise UserError(f"sampling.server is {self.url!r}, which is no address ({reason_of(error)})") from None
            except httpx2.ReadTimeout:  # it is there, and would be as slow again
                raise ServerGone(
                    f"sampling.server {self.url} did not answer {path} within the {self._timeout:g} seconds of "
                    "sampling.server_timeout; start it again or allow more, and the same command goes on"
                ) from None
            except (httpx2.RequestError, ValueError) as error:
                reason = reason_of(error, 150)
            if attempt + 1 == attempts or time.monotonic() - begun > _PATIENCE:
                raise ServerGone(
                    f"sampling.server {self.url} does not answer ({reason}); start it, and the same command goes on"
                )
            log.warning("sampling.server %s does not answer (%s); asking again", self.url, visible(reason))
            time.sleep(2**attempt)
        if path.endswith("_lora_adapter"):
            reason += "; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, see docs/scale.md"
        elif path == "/is_sleeping":
            reason += "; start it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1, or leave sampling.server_sleeps"
        raise Refused(f"sampling.server {self.url} refuses {path} ({reason})", response.status_code)


def _json(response: httpx2.Response) -> dict[str, Any]:
    """What is said, as fields; a plain line, such as vLLM's of adapters, has none."""
    if "json" not in response.headers.get("Content-Type", ""):
        return {}
    found = response.json()
    return found if isinstance(found, dict) else {}


def _said(response: httpx2.Response) -> str:
    return visible(" ".join(response.text[:300].split()))
