"""Numbers and findings as people read them."""

from stages.core.significance import Comparison


def scientific(value: float) -> str:
    """A small setting as it is written in params.yaml: 5e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if 0 < value < 0.01 else f"{value:g}"


def percent(fraction: float) -> str:
    return f"{fraction:.2%}"


def percent_range(limits: tuple[float, float]) -> str:
    low, high = limits
    return f"{100 * low:.2f}–{100 * high:.2f}%"


def signed(difference: float, digits: int = 2) -> str:
    """A difference with its sign, unless it rounds to zero."""
    rounded = round(difference, digits)
    return f"{rounded:{'+' if rounded else 'z'}.{digits}f}".replace("-", "−")


def points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return signed(100 * difference)


def points_range(limits: tuple[float, float]) -> str:
    return " to ".join(map(points, limits))


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {seconds:02} s"


def verdict(subject: str, names: tuple[str, str], comparison: Comparison, sample: str) -> str:
    """The answer to whether the first is better than the second: `subject` says what the names are of, if anything, and
    `sample` what the comparison was made on."""
    first, second = names
    of = f"{subject} " if subject else ""
    if first == second:
        words = f"{of}{first} in both: nothing to compare"
    elif not comparison.significant:
        words = f"{of}{first} against {second}: no difference that {sample} can show"
    else:
        better, worse = names if comparison.difference > 0 else (second, first)
        words = f"{of}{better} is better than {worse}"
    return words[0].upper() + words[1:]
