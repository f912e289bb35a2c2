"""Pieces of work that another process can find."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lsemrl.commands.demo_progress import Shown
from lsemrl.errors import UserError


def counted(name: str, count: int, shown: Shown) -> tuple[str, int]:
    for number in range(count):
        shown.say(f"{name} {number}")
        shown.advance(1.0)
    print(f"{name} printed")
    print(f"{name} warned", file=sys.stderr)
    return name, os.getpid()


def telling(file: Path, shown: Shown) -> None:
    """Tells for a minute that it is at work, and in the file who it is."""
    file.write_text(str(os.getpid()))
    for _ in range(600):
        shown.say("at work")
        time.sleep(0.1)


def failing(how: str, file: Path, shown: Shown) -> None:
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    if how == "dies":
        os._exit(3)
    if how == "no pickle":

        class Local(Exception):
            pass

        raise Local("what nobody can unpickle")
    raise UserError("lr is -1; give a number above 0")


class Mute:
    """Nobody is told."""

    def say(self, text: str) -> None:
        pass

    def advance(self, cost: float) -> None:
        pass


if __name__ == "__main__":
    from functools import partial

    from lsemrl.commands.beside import side_by_side
    from works import telling as found_by_a_child

    side_by_side([partial(found_by_a_child, Path(file)) for file in sys.argv[1:]], [Mute(), Mute()])
