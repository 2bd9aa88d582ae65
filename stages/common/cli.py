"""Start and end of every stage and command: a user's mistake ends in one line, a bug in a traceback."""

import errno
import shutil
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from stages.common.errors import UserError, printable

NO_MEMORY = ("out of memory", "can't allocate memory")  # in messages of torch


def parser(prog: str, doc: str | None) -> ArgumentParser:
    """Return a parser that describes the program by the first line of its module's docstring."""
    return ArgumentParser(prog=prog, description=(doc or "").partition("\n")[0])  # none under `python -OO`


def run(main: Callable[[Namespace], None], parser: ArgumentParser) -> None:
    """Parse the command line and call `main` with it.

    A UserError, and what the system refuses (a full disk, a missing permission, too little memory), end in one line
    and exit status 1. Ctrl-C and SIGTERM raise KeyboardInterrupt in `main`, and end in one line and the shell's status
    for that signal.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # what its encoding lacks
    args = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        main(args)
    except KeyboardInterrupt as stopped:
        by = stopped.args[0] if stopped.args else signal.SIGINT
        print(f"{parser.prog}: stopped ({by.name}); run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(128 + by)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in NO_MEMORY):
            raise  # a bug
        print(f"{parser.prog}: {_line(error)}", file=sys.stderr, flush=True)
        sys.exit(1)


def _interrupt(number: int, _frame: object) -> None:
    for by in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not disturb how the first one ends
        signal.signal(by, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number))


def _line(error: UserError | OSError | MemoryError | RuntimeError) -> str:
    if isinstance(error, UserError):
        return printable(error, 2000)
    if isinstance(error, (MemoryError, RuntimeError)):
        return f"out of memory ({printable(error)}); make the images, the batch or the model smaller"
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename:
        free = shutil.disk_usage(Path(error.filename).parent).free / 2**20
        return f"{printable(error.filename)}: the disk is full: {free:,.0f} MiB are free; make room and run this again"
    return printable(f"{error.filename}: {error.strerror}" if error.filename else error)
