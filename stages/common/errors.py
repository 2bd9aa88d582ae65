"""The one exception that is meant for the user, and what messages quote from outside, on one line."""

from typing import Any

from pydantic import BaseModel, ValidationError

SHOWN = 80  # characters of a value or a name that a message quotes
JOINERS = "\u200c\u200d"  # parts of Persian words and of emoji
LISTED = 5  # problems that a message names, before it counts the rest


class UserError(Exception):
    """One line: what is wrong, where, and what to do."""


def shown(value: object) -> str:
    """Quote a value: printable and short, whatever it is."""
    return printable(repr(value), SHOWN)


def printable(text: object, most: int = 300) -> str:
    """Put a text from outside, a path or another library's message, on one line without control characters."""
    line = "".join(c if c.isprintable() or c in JOINERS else ascii(c)[1:-1] for c in " ".join(str(text).split()))
    return line if len(line) <= most else line[: most - 3] + "..."


def listed(problems: list[str]) -> str:
    """Join the first few problems, and say how many more there are."""
    more = len(problems) - LISTED
    return "; ".join(problems[:LISTED]) + (f"; and {more} more" if more > 0 else "")


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Say what pydantic found, as `key = value: what is allowed`.

    Args:
        model: the class that was filled in, whose keys are known.
    """
    return listed([_problem(problem, model) for problem in error.errors(include_url=False)])


def _problem(problem: Any, model: Any) -> str:
    key = printable(".".join(map(str, problem["loc"])), SHOWN)
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "extra_forbidden":
        for name in problem["loc"][:-1]:
            model = getattr(getattr(model, "model_fields", {}).get(name), "annotation", None)
        known = getattr(model, "model_fields", {})
        return f"{key} is unknown" + (f"; known here: {', '.join(known)}" if known else "")
    message = printable(problem["msg"].removeprefix("Value error, ").replace("Input should", "must"))
    return f"{key} = {shown(problem['input'])}: {message}" if key else message
