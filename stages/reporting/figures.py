"""The report's charts; their bytes depend on the numbers alone.

A run has one colour, one marker and one kind of dashes in every chart, so charts are read without colours too. This
module is imported before any other that imports matplotlib.
"""

import io
import math
import os
from collections.abc import Callable, Iterable

os.environ["MPLBACKEND"] = "agg"  # the user's may be unknown to this matplotlib

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullLocator

from stages.reporting.findings import KNOWN
from stages.reporting.results import Run
from stages.reporting.tables import extremes
from stages.reporting.wording import percent, short

# Okabe & Ito's colours, which are told apart with any colour vision, darkened for white paper
COLOURS = ["#0072b2", "#b84a00", "#007a59", "#a3477f", "#8a6100", "#33648a", "#4d4d4d"]
MARKERS = "osD^vPX"
DASHES = ["-", "--", (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (8, 3)), (0, (3, 1))]
QUIET = "#595959"
STYLE = {
    "font.size": 11,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "text.parse_math": False,  # a $ in the name of a class is a $
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),  # C0 is the first run, C1 the second
    "grid.color": "#d9d9d9",
    "legend.frameon": False,
    "svg.hashsalt": "report",  # names inside the file that are the same each time
}


def draw(chart: Callable[..., Figure], *args) -> tuple[bytes, bytes]:
    """Return the chart that `chart(*args)` draws as SVG and as PNG, of 200 dots an inch."""
    svg, png = io.BytesIO(), io.BytesIO()
    with style.context(["default", STYLE]):
        figure = chart(*args)
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def accuracies(runs: list[Run], seeds: pd.DataFrame, known: bool) -> Figure:
    """Draw the test accuracy of each run with its 95 % interval, and below it, smaller, the accuracy with each seed.

    Args:
        seeds: a row for each seed, a column for each run, fractions.
        known: add what the full experiment reaches.
    """
    figure, axes = _rows([run.label for run in runs], 0.55, "Test accuracy, with 95% interval")
    for place, run in enumerate(runs):
        value, look = run.tested.accuracy, _look(place, run)
        axes.plot(run.tested.interval, [place, place], color=look["color"], linewidth=2.2, solid_capstyle="butt")
        axes.plot(value, place, **look, markersize=8)
        axes.annotate(percent(value), (value, place), (0, 9), textcoords="offset points", ha="center", fontsize=10)
        axes.plot(seeds[run.name], [place + 0.28] * len(seeds), look["marker"], color=look["color"], markersize=4)
    if known:
        axes.axvline(KNOWN, color=QUIET, linestyle=":", linewidth=1.2, zorder=1)
        axes.text(KNOWN, 1.01, f"known: {KNOWN:.0%}", transform=axes.get_xaxis_transform(), color=QUIET, fontsize=9)
    return figure


def curves(runs: list[Run], column: str, label: str, tick: Callable[..., str]) -> Figure:
    """Draw a column of each run's history over the epochs.

    The axis fits the second half of a training of more than ten epochs. On one that held the first epochs, the ends of
    the runs could not be told apart.

    Args:
        label: of the axis.
        tick: writes a value of the axis.
    """
    (figure, axes), late = blank(), list[float]()
    for number, run in enumerate(runs):
        values, first = run.history[column], len(run.history) // 2 if len(run.history) > 10 else 0
        axes.plot(run.history.epoch, values, **_look(number, run) | {"markevery": [-1], "linewidth": 1.8})
        late += values[first:].tolist()
    low, high = min(late), max(late)
    margin = 0.06 * (high - low) or 0.01
    axes.set(xlabel="Epoch", ylabel=label, ylim=(low - margin, high + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.yaxis.set_major_formatter(tick)
    axes.grid(axis="y")
    _legend(figure, runs)
    return figure


def loss(runs: list[Run], held_out: str) -> Figure:
    """Draw the loss on the held-out images over all epochs, on a logarithmic axis."""
    figure = curves(runs, f"{held_out}_loss", f"{held_out.capitalize()} loss", tick_percent)
    axes = figure.axes[0]
    axes.set_yscale("log")
    axes.autoscale(axis="y")
    # A narrow axis may hold none of 1, 2 and 5
    locator = LogLocator(subs=(1, 2, 5)) if np.divide(*axes.get_ylim()) < 0.1 else MaxNLocator(6)
    axes.yaxis.set(major_locator=locator, major_formatter="{x:g}", minor_locator=NullLocator())
    return figure


def per_class(runs: list[Run]) -> Figure:
    """Draw F1 of each class, or of many classes the worst and the best, a mark for each run."""
    classes = extremes(runs)
    figure, axes = _rows(runs[0].per_class["class"][classes], 0.3, "F1")
    for number, run in enumerate(runs):  # beside each other, so that none covers another
        places = np.arange(len(classes)) + 0.4 * ((number + 0.5) / len(runs) - 0.5)
        axes.plot(run.per_class.f1[classes], places, **_look(number, run) | {"linestyle": "", "markersize": 6})
    axes.grid(axis="y")
    _legend(figure, runs)
    return figure


def reliability(run: Run, number: int) -> Figure:
    """Draw accuracy against confidence in each bin of confidence, the dots as large as the bin has images."""
    figure, axes = blank(3.6, 3.6)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8)
    bins, colour = run.calibration, f"C{number}"
    sizes = 10 + 190 * bins.images / bins.images.max()
    axes.vlines(bins.confidence, bins.confidence, bins.accuracy, color=colour, linewidth=1.2)
    axes.scatter(bins.confidence, bins.accuracy, sizes, color=colour, clip_on=False)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="Confidence", ylabel="Accuracy")
    axes.grid()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set(major_locator=MultipleLocator(0.25), major_formatter=tick_percent)
    return figure


def tick_percent(fraction: float, position: int | None = None) -> str:
    return f"{100 * fraction:.4g}%" if fraction < 1.0001 else ""


def tick_points(difference: float, position: int | None = None) -> str:
    return f"{100 * difference:z.3g} pt".replace("-", "−")


def blank(width: float = 5, height: float = 3.2) -> tuple[Figure, Axes]:
    """Return an empty chart; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _look(number: int, run: Run) -> dict:
    """Return how a run is drawn, by its number, and its name in the legend."""
    dashes, marker = DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
    return {"color": f"C{number}", "linestyle": dashes, "marker": marker, "label": short(run.label, 30)}


def _rows(names: Iterable[str], height: float, label: str) -> tuple[Figure, Axes]:
    """Return an empty chart of fractions with a row of so many inches for each name, the first on top."""
    texts = [short(name, 30) for name in names]
    figure, axes = blank(height=1.0 + height * len(texts))
    axes.set(yticks=range(len(texts)), yticklabels=texts, ylim=(len(texts) - 0.5, -0.7), xlabel=label)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.12)
    axes.grid(axis="x")
    axes.xaxis.set(major_locator=MaxNLocator(5, steps=[1, 2, 5, 10]), major_formatter=tick_percent)
    return figure, axes


def _legend(figure: Figure, runs: list[Run]) -> None:
    """Name the runs above the chart, which grows by the legend's height."""
    figure.set_figheight(figure.get_figheight() + 0.24 * math.ceil(len(runs) / 2))
    figure.legend(loc="outside upper left", ncols=2, fontsize=10, columnspacing=1.2, handlelength=3)
