"""Numbers, names and findings in the words of the report."""

import re
from collections.abc import Sequence

from markupsafe import Markup

from stages.common.errors import printable
from stages.evaluation.significance import Comparison

SHORT, LONG = 24, 60  # characters of a name in a figure, and in a table


def scientific(value: float) -> str:
    """A small setting as params.yaml has it: 5e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if 0 < value < 0.01 else f"{value:g}"


def percent(fraction: float) -> str:
    return f"{fraction:.2%}"


def percent_range(limits: Sequence[float]) -> str:
    low, high = limits
    return f"{100 * low:.2f}–{100 * high:.2f}%"


def signed(difference: float, digits: int = 2) -> str:
    """A difference with its sign, unless it rounds to zero."""
    rounded = round(difference, digits)
    return f"{rounded:{'+' if rounded else 'z'}.{digits}f}".replace("-", "−")


def points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return signed(100 * difference)


def points_range(limits: Sequence[float]) -> str:
    return " to ".join(map(points, limits))


def duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {seconds:02} s"


def short(name: str, most: int = SHORT) -> str:
    """A name from outside on one line, its middle left out where it is too long."""
    name = printable(name, 10_000)
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - half]}…{name[-half:]}"


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def markdown(value: object) -> Markup:
    """A value as GitHub's Markdown shows it, whatever it holds: on one line, its punctuation as character references.

    A space of no width after an @ keeps it from calling a person of that name. What is Markup already stays as it is.
    """
    if isinstance(value, Markup):
        return value
    special = r"[&<>|$`*\[\]~\\#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # resnet_ablation stays readable
    escaped = re.sub(special, lambda found: f"&#{ord(found[0])};", printable(value, 10_000))
    return Markup(escaped.replace("@", "@&#8203;"))


def verdict(subject: str, names: Sequence[str], comparison: Comparison, sample: str) -> str:
    """The answer to the question of whether the first is better than the second.

    Args:
        subject: what the names are values of, such as weight decay; empty if they stand by themselves.
        sample: what was compared, such as 10,000 test images.
    """
    of = f"{subject} " if subject else ""
    if not comparison.significant:
        words = f"{of}{names[0]} against {names[1]}: no difference that {sample} can show"
    else:
        better, worse = names if comparison.difference > 0 else names[::-1]
        words = f"{of}{better} is better than {worse}"
    return capitalised(words)


def confidence(temperature: float | None) -> str:
    """A judgement of the confidence of a model, from the temperature that would calibrate it."""
    if temperature is None:
        return "Every image is right, so no temperature is optimal."
    if 0.95 < temperature < 1.05:
        words = "well calibrated as it is"
    else:
        words = "too sure of itself" if temperature > 1 else "not sure enough of itself"
    return f"Logits divided by {temperature:.2f} would calibrate it best: it is {words}."


def p_value(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-99 else "p < 1e-99"
