"""Numbers and names in the words of the report."""

import re
from collections.abc import Sequence

from markupsafe import Markup

from stages.common.errors import printable
from stages.evaluation.significance import SIGNIFICANT

SHORT, LONG = 24, 60  # characters of a name in a figure, and in a table


def scientific(value: float) -> str:
    """Write a small setting as params.yaml has it: 5e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if 0 < value < 0.01 else f"{value:g}"


def percent(fraction: float) -> str:
    return f"{fraction:.2%}"


def percent_range(limits: Sequence[float]) -> str:
    low, high = limits
    return f"{100 * low:.2f}–{100 * high:.2f}%"


def points(difference: float) -> str:
    """Write a difference of fractions in percentage points."""
    return f"{100 * difference:+z.2f}".replace("-", "−")


def points_range(limits: Sequence[float]) -> str:
    return " to ".join(map(points, limits))


def p_value(p: float) -> str:
    """Write p with two digits, or with more where these lie on the other side of 0.05."""
    text = next(t for digits in range(2, 18) if (float(t := f"{p:.{digits}g}") < SIGNIFICANT) == (p < SIGNIFICANT))
    return f"p = {text}" if p >= 1e-99 else "p < 1e-99"


def duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {seconds:02} s"


def short(name: str, most: int = SHORT) -> str:
    """Put a name from outside on one line, its middle left out where it is too long."""
    name = printable(name, 10_000)
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - half]}…{name[-half:]}"


def markdown(value: object) -> Markup:
    """Write a value so that GitHub's Markdown shows it as it is, whatever it holds, on one line.

    Punctuation becomes character references. GitHub also links words of the text that these stand for (a@b, #123, GH-1,
    www.example.org, http://example.org) and draws :cat: as a picture: a space of no width breaks them. What is Markup
    already stays as it is.
    """
    if isinstance(value, Markup):
        return value
    special = r"[&<>|$`*\[\]~\\#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # resnet_ablation stays readable
    escaped = re.sub(special, lambda match: f"&#{ord(match[0])};", printable(value, 10_000))
    return Markup(re.sub(r"@|&#35;|:(?=\S)|(?i:www(?=\.)|gh(?=-))", r"\g<0>&#8203;", escaped))
