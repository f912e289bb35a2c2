"""What is done about a reward that raises, hangs, or gives something that is no reward."""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lsemrl.finite import check_finite
from lsemrl.types import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a part of the reward is waited for, and what follows when it fails."""

    timeout: float | None = 600.0
    """Seconds for one batch; null waits for ever."""
    retries: int = 1
    """How often a part that failed is asked again."""
    on_failure: Literal["stop", "nan"] = "stop"
    """After that: stop the run, or go on with NaN for the batch, so that the other parts make the reward."""

    def __post_init__(self) -> None:
        check_finite(self, "patience")
        if self.timeout is not None and self.timeout <= 0:
            raise UserError(f"patience.timeout is {self.timeout}; give seconds above 0, or null")
        if self.retries < 0:
            raise UserError(f"patience.retries is {self.retries}; give 0 or more")


class Attendant:
    """Asks a part of the reward in a thread of its own, which is left behind when it hangs.

    Args:
        name: The part, for messages.
        patience: See there.

    Attributes:
        failures: Calls that gave nothing to the last.
    """

    def __init__(self, name: str, patience: Patience) -> None:
        self.name, self.patience = name, patience
        self.failures = 0
        self._asked: queue.SimpleQueue[Callable[[], None]] | None = None

    def __call__(self, ask: Callable[[], Tensor]) -> Tensor | None:
        """What `ask` gives; None after the last failure, where that does not stop the run.

        Raises:
            UserError: It failed to the last, and `on_failure` is stop.
        """
        tries = self.patience.retries + 1
        for attempt in range(1, tries + 1):
            try:
                return self._wait_for(ask)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                told = "" if isinstance(error, UserError | TimeoutError) else f"\n{_origin(error)}"
                log.warning("reward %r failed (%d of %d): %s%s", self.name, attempt, tries, reason, told)
                last = error
        self.failures += 1
        if self.patience.on_failure == "nan":
            return None
        if isinstance(last, UserError):
            raise last
        raise UserError(
            f"reward {self.name!r} failed {tries} times running ({reason}); mend it, or set model.patience.on_failure "
            "to nan to go on without it"
        ) from last

    def _wait_for(self, ask: Callable[[], Tensor]) -> Tensor:
        if self.patience.timeout is None:
            return ask()
        answer: queue.SimpleQueue[Tensor | BaseException] = queue.SimpleQueue()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def work() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)  # every thread has its own
                answer.put(ask())
            except BaseException as error:
                answer.put(error)

        if self._asked is None:
            self._asked = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._asked,), daemon=True, name=f"reward {self.name}").start()
        self._asked.put(work)
        try:
            found = answer.get(timeout=self.patience.timeout)
        except queue.Empty:
            self._asked = None  # whoever hangs keeps the old one
            raise TimeoutError(f"no answer within {self.patience.timeout:g} seconds") from None
        if isinstance(found, BaseException):
            raise found
        return found


def _serve(asked: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        asked.get()()


def _origin(error: BaseException) -> str:
    """The innermost lines of a traceback, where a user's own reward went wrong."""
    return "".join(traceback.format_tb(error.__traceback__)[-2:]).rstrip()
