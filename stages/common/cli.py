"""Start and end of every stage and command: a user's mistake ends in one line, a bug in a traceback."""

import contextlib
import errno
import os
import shutil
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from stages.common.errors import UserError, printable

if TYPE_CHECKING:
    import psutil


def parser(prog: str, doc: str | None) -> ArgumentParser:
    """A parser that describes the program by the first line of its module's docstring (none under `python -OO`)."""
    return ArgumentParser(prog=prog, description=(doc or "").partition("\n")[0])


def run(main: Callable[[Namespace], None], parser: ArgumentParser) -> None:
    """Parse the command line and call `main` with it.

    A UserError, and what the operating system refuses (a full disk, a missing permission), end in one line and exit
    status 1; `--debug` shows the traceback instead. Ctrl-C and SIGTERM raise KeyboardInterrupt in `main`, and end in
    one line, with the first of its notes as advice, and the shell's status for that signal.
    """
    _open_streams()
    _end_with_dvc()
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        main(args)
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        by = stopped.args[0] if stopped.args else signal.SIGINT
        advice = getattr(stopped, "__notes__", ["run the same command again"])[0]
        _end(f"{parser.prog}: stopped ({by.name}); {advice}", 128 + by)
    except (UserError, OSError, MemoryError) as error:
        if args.debug:
            raise
        _end(f"{parser.prog}: {_line(error)}", 1)


def _open_streams() -> None:
    """Give a closed standard stream a place to go, and print what its encoding lacks in escapes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif mode == "w":
            stream.reconfigure(errors="backslashreplace")


def _end_with_dvc() -> None:
    """Send this process SIGTERM when the DVC that started it has ended, since nobody would use its results."""
    if "DVC_STAGE" not in os.environ:  # which DVC sets for a stage and all that it starts
        return
    import psutil  # here, because a stage that DVC did not start does not need it

    for ancestor in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            if "DVC_STAGE" not in ancestor.environ():
                Thread(target=_end_after, args=(ancestor,), daemon=True).start()
                return


def _end_after(process: "psutil.Process") -> None:
    process.wait()
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(number: int, _frame: object) -> None:
    for by in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not disturb how the first one ends
        signal.signal(by, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number))


def _end(line: str, status: int) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - nobody reads it any more
    print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def _line(error: UserError | OSError | MemoryError) -> str:
    if isinstance(error, UserError):
        return printable(error, 2000)
    if isinstance(error, MemoryError):
        return f"out of memory{f': {printable(error)}' if str(error) else ''}; use smaller images, or a larger machine"
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename:
        folder = Path(error.filename).parent
        free = shutil.disk_usage(folder).free / 2**20
        return (
            f"{printable(error.filename)}: the disk is full: {free:,.0f} MiB are free in {printable(folder.absolute())}"
            f"{f', {error.filename2}' if error.filename2 else ''}; make room and run this again"
        )
    return printable(f"{error.filename}: {error.strerror}" if error.filename else error)
