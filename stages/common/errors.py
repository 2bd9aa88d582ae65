"""The one exception that is meant for the user, and errors of validation in its words."""

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

SHOWN = 80  # characters of a value or a name that a message quotes
LISTED = 5  # problems that a message names, before it counts the rest


class UserError(Exception):
    """One line: what is wrong, where, and what to do."""


class _Short(reprlib.Repr):
    """reprlib's short form, with few levels and with integers of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, SHOWN, SHOWN, SHOWN

    def repr_int(self, value: int, level: int) -> str:
        bits = value.bit_length()  # Python writes no more than some thousand digits out
        return super().repr_int(value, level) if bits < 10_000 else f"an integer of {bits:,} bits"


def shown(value: object) -> str:
    """A value as a message quotes it: printable and short, whatever it is."""
    return printable(_Short().repr(value), 2 * SHOWN)


def printable(text: object, most: int = 300) -> str:
    """A text from outside, a path or another library's message, on one line and without control characters."""
    line = " ".join(str(text).split())
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    return line if len(line) <= most else line[: most - 3] + "..."


def listed(problems: list[str]) -> str:
    """The first few problems, and how many more there are."""
    more = len(problems) - LISTED
    return "; ".join(problems[:LISTED]) + (f"; and {more} more" if more > 0 else "")


def explain(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """The first few problems that pydantic found, as `key = value: what is allowed`; `kind` tells the known keys."""
    return listed([_problem(problem, kind) for problem in error.errors(include_url=False)])


def _problem(problem: Mapping[str, Any], kind: type[BaseModel] | None) -> str:
    key = printable(".".join(map(str, problem["loc"])), SHOWN)
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "extra_forbidden":
        for name in problem["loc"][:-1]:
            field = getattr(kind, "model_fields", {}).get(name)
            kind = field and field.annotation
        known = getattr(kind, "model_fields", {})
        return f"{key} is unknown" + (f"; known here: {', '.join(known)}" if known else "")
    message = problem["msg"].removeprefix("Value error, ")
    for said in ("Input should", "String should", "List should", "Dictionary should", "Tuple should"):
        message = message.replace(said, "must")
    return f"{key} = {shown(problem['input'])}: {printable(message)}" if key else printable(message)
