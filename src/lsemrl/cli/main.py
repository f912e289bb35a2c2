"""The command line: Lightning's fit, validate, test and predict, and the project's own verbs.

`main` answers --help without importing torch, and turns a user's mistake into one sentence and exit code 2. A fault of
ours keeps its traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence

from lsemrl import __version__
from lsemrl.as_typed import NotFields
from lsemrl.cli.verbs import VERBS, run_verb
from lsemrl.commands.trainer import TRAINER_VERBS
from lsemrl.errors import UserError
from lsemrl.files import full_disk
from lsemrl.foreign import ShownRecord, visible

_NO_NAME = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
_RANK_IS_GONE = ("gloo/transport", "ncclRemoteError")
"""Parts of what torch.distributed raises where a rank waits for another that has ended."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Words after the program's name; None takes them from the process.

    Raises:
        SystemExit: 2 for a user's mistake, 3 where an alarm stopped a run, 1 where another rank has gone and 130 for
            Ctrl-C, told in one sentence on standard error.
    """
    words = list(sys.argv[1:] if args is None else args)
    verb = words[0] if words else "--help"
    shown = {"-h": _help, "--help": _help, "--version": lambda: f"lsemrl {__version__}"}
    logging.setLogRecordFactory(ShownRecord)
    warnings.formatwarning = _warning
    # peft imports it wherever it is installed, and it warns of a kernel for 4 bits that nobody asked for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        if verb in shown:
            print(shown[verb]())
        elif verb not in VERBS:
            raise UserError(f"there is no verb {verb!r}; choose one of {', '.join(VERBS)}")
        else:
            run_verb(verb, words[1:])
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a pipe that is closed is told from a fault
    except BrokenPipeError:  # whoever reads has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the process
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        print("lsemrl: stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        number = getattr(error, "signal", None)  # of `modules.checkpoints.Interrupted`, which this must not import
        if number:
            print(f"lsemrl: {visible(str(error))}", file=sys.stderr)
            raise SystemExit(128 + number) from None
        sentence, status = users_mistake(error, verb), getattr(error, "status", 2)  # of `modules.alarm_log.Alarmed`
        if sentence is None and any(sign in str(error) for sign in _RANK_IS_GONE):
            sentence, status = "another rank has gone; what it said is above, and the same command goes on", 1
        if sentence is None:
            raise
        print(f"lsemrl: error: {visible(sentence)}", file=sys.stderr)
        raise SystemExit(status) from error


def _warning(message: Warning | str, category: type[Warning], *place: object, **line: object) -> str:
    """What is warned of, for people: where in whose code says nothing to them."""
    return f"warning: {visible(str(message))}\n"


def _help() -> str:
    lines = "\n".join(f"  {verb:<{max(map(len, VERBS))}}  {line}" for verb, line in VERBS.items())
    return (
        f"lsemrl {__version__}: teach a language model a low-resource language, and see what it lost\n\n"
        f"usage: lsemrl VERB [--config FILE ...] [--field value ...]\n\n"
        f"{lines}\n\n"
        "lsemrl VERB --help explains a verb.\n"
        "lsemrl fit --config FILE --print_config shows every field with its comment."
    )


def users_mistake(error: BaseException, verb: str = "fit") -> str | None:
    """What to tell the user about `error` of `verb`, in one sentence; None if the fault is ours.

    The parser wraps an error once for every level of the configuration, so the telling one is the innermost: a
    UserError as it stands, what stands in place of fields, Lightning's complaint about the trainer, letters that
    standard output cannot be written in, a disk that is full, a name that is too long or in a closed folder, memory
    that ran out, or the parser's own complaint behind the path of fields that led there.
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for at, link in enumerate(chain):
        if isinstance(link, UserError):
            return " ".join(str(link).split())
        if isinstance(link, NotFields):
            return _instead_of_fields(link, _path(chain[: at + 1]), verb)
        if type(link).__name__ == "MisconfigurationException":  # Lightning's
            return f"trainer: {' '.join(str(link).split())[:300]}"
        if isinstance(link, UnicodeEncodeError) and link.encoding != "utf-8":
            return (
                f"standard output is written in {link.encoding}, which has no {link.object[link.start]!r}; set "
                "PYTHONUTF8=1 in the environment"
            )
        if reason := full_disk(link):
            where = getattr(link, "filename", None) or "a file"
            return f"{where} cannot be written to ({reason}); make room, and run the same command again"
        if isinstance(link, OSError) and link.errno in _NO_NAME and link.filename:
            return f"{str(link.filename)[:200]!r} cannot be looked at ({link.strerror}); name another place"
        if type(link).__name__ == "OutOfMemoryError":  # torch's, which this must not import
            reason = " ".join(str(link).split())[:120]
            return f"memory ran out ({reason}); docs/scale.md says what takes it, and what to lower"
    if not isinstance(error, ArgumentError):
        return None
    texts, path = [str(link) for link in chain], _path(chain)
    complaint = " ".join(re.sub(r'^Parser key "[^"]+":', "", texts[-1]).split())
    complaint = re.sub(r"<class '([\w.]+)'>", r"\1", complaint)
    complaint = re.sub(r"\ba typing\.Literal\[([^]]*)\]", r"one of \1", complaint)
    known = re.search(r" \((the nearest is|there are) [\w., ]+\)", texts[0])
    if known and known[0] not in complaint:
        complaint += known[0]
    short = complaint.replace(".init_args", "")
    nearest = re.search(r"the nearest is ([\w.]+)", short)
    if not (nearest and f"--{nearest[1]}=" in short):  # or init_args, which was typed, is the fault
        complaint = short
    where = f"{path}: " if path else ""
    missing = next((link.name for link in chain if isinstance(link, ModuleNotFoundError)), None)
    if missing is not None:
        places = f"among installed packages, in {os.getcwd()}, and beside each --config"
        return f"{where}there is no module {missing!r}; it is looked for {places}"
    if complaint.endswith("Got value: None"):
        complaint = f"{complaint.removesuffix('None')}null; give a value, or leave it out for its default"
        return f"{where}{complaint}; {_listing(verb)}"
    if re.search(r"Expected a (builtins\.)?str\b", complaint):
        return f"{where}{complaint.rstrip('.')}; put text that YAML reads as something else in quotes"
    return f"{where}{complaint.rstrip('.')}; {_listing(verb)}"


def _path(chain: Sequence[BaseException]) -> str:
    """The path of fields that led to the last of them."""
    keys = (key for link in chain for key in re.findall(r'^Parser key "([^"]+)"', str(link)))
    return ".".join(dict.fromkeys(key.replace(".init_args", "") for key in keys))


def _listing(verb: str) -> str:
    if verb in TRAINER_VERBS:
        return f"lsemrl {verb} --config FILE --print_config lists every field with its type"
    return f"lsemrl {verb} --help lists every option"


def _instead_of_fields(given: NotFields, path: str, verb: str) -> str:
    fields = f"give the fields one by one, --{path}.{given.field} {given.example}"
    if given.several and given.field == "path" and path.startswith("data."):
        fields += "; rows of several files are a MixedData, with a data for each (docs/data.md)"
    return f"{path}: {given.text} is neither a file of its fields nor a class; {fields}; {_listing(verb)}"
