"""Drawing: charts as files, in light and in dark colours; their bytes depend on the numbers alone.

This module is imported before any other that imports matplotlib.
"""

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence

os.environ["MPLBACKEND"] = "agg"  # the user's may be unknown to this matplotlib

from matplotlib import font_manager, style
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from stages.reporting.wording import short

# Okabe & Ito's colours, which are told apart with any colour vision, darker for white paper and lighter for a dark page
LIGHT = ["#0072b2", "#b84a00", "#007a59", "#a3477f", "#8a6100", "#33648a", "#4d4d4d"]
DARK = ["#56b4e9", "#ff9a5a", "#2fc79a", "#e79ac6", "#e6b43c", "#9cc4e4", "#c0c0c0"]
PAPER = {"text": "#1a1a1a", "quiet": "#595959", "line": "#d9d9d9", "page": "#ffffff"}
NIGHT = {"text": "#ececec", "quiet": "#b0b0b0", "line": "#4a4a4a", "page": "#16181b"}
FONT = "DejaVu Sans"  # comes with matplotlib
logging.getLogger("matplotlib.font_manager").setLevel("ERROR")  # `find_fonts` tries each font, and many lack a weight
DPI = 200  # of a PNG


def chart(draw: Callable[..., Figure], *args, form: str, dark: bool = False, fonts: Sequence[str] = ()) -> bytes:
    """The chart that `draw(*args)` returns, as `svg` or `png`; `fonts` have letters that matplotlib's own lacks."""
    file, unsigned = io.BytesIO(), {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    with style.context(["default", _settings(dark, fonts)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `find_fonts` has told which
        draw(*args).savefig(file, format=form, dpi=DPI, metadata=unsigned[form])
    return file.getvalue()


def find_fonts(names: Iterable[str]) -> tuple[list[str], str]:
    """Installed fonts for the letters of these names that the usual font lacks, and the letters that none has."""
    lacking = set("".join(map(short, names))) - _letters(FONT)
    fonts = []
    for font in font_manager.get_font_names() if lacking else []:
        if not font.startswith("Last Resort") and lacking & (letters := _letters(font)):  # whose letters are boxes
            lacking -= letters
            fonts.append(font)
    return fonts, "".join(sorted(lacking))


def _letters(font: str) -> set[str]:
    path = font_manager.findfont(font_manager.FontProperties(family=[font]))
    return set(map(chr, font_manager.get_font(path).get_charmap()))


def _settings(dark: bool, fonts: Sequence[str]) -> dict:
    text, quiet, line, ground = (NIGHT if dark else PAPER).values()
    return {
        "font.size": 11,
        "font.family": [FONT, *fonts],
        "text.parse_math": False,  # a $ in the name of a class is a $
        "text.color": text,
        "figure.facecolor": ground,
        "axes.facecolor": ground,
        "axes.edgecolor": quiet,
        "axes.labelcolor": text,
        "xtick.color": quiet,
        "ytick.color": quiet,
        "grid.color": line,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=DARK if dark else LIGHT),  # C0 is the first run, C1 the second
        "legend.frameon": False,
        "svg.hashsalt": "report",  # names inside the file that are the same each time
    }
