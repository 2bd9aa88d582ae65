"""The report's charts, drawn with matplotlib; their bytes depend on the numbers alone.

Each function draws one small chart that is read on a phone as well as in a row of several on a desktop. `svg` turns it
into markup that takes its colours from the page, `png` into a picture on white.
"""

import io
import re
from collections.abc import Callable
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator, MultipleLocator, PercentFormatter

from stages.results import Run

# A run's colour in every figure: Okabe & Ito's, which are told apart with any colour vision, darkened until they can be
# read as text on white; beside each, the lighter one for a dark page.
COLOURS = {
    "#0072b2": "#56b4e9",
    "#b84a00": "#ff9a5a",
    "#007a59": "#2fc79a",
    "#a3477f": "#e79ac6",
    "#8a6100": "#e6b43c",
    "#33648a": "#9cc4e4",
    "#4d4d4d": "#c0c0c0",
}
TEXT, QUIET, LINE = "#1a1a1a", "#595959", "#d9d9d9"
# The variables of the page that hold these colours, or others on a dark page
VARIABLES = {TEXT: "--text", QUIET: "--quiet", LINE: "--line"} | {
    colour: f"--run-{number}" for number, colour in enumerate(COLOURS)
}
STYLE = {
    "font.size": 11,
    "text.color": TEXT,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": TEXT,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a $ in the name of a class is a $
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}


def colours(runs: list[Run]) -> dict[str, str]:
    return {run.name: colour for run, colour in zip(runs, cycle(COLOURS), strict=False)}


def accuracy(runs: list[Run]) -> Figure:
    """Test accuracy over the epochs."""
    figure, axes = _chart()
    _lines(axes, runs, "test_accuracy")
    axes.set_ylabel("Test accuracy")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    return figure


def loss(runs: list[Run]) -> Figure:
    """Test and training loss over the epochs."""
    figure, axes = _chart()
    for run in runs:
        axes.plot(run.history.epoch, run.history.train_loss, ":", color=colours(runs)[run.name], linewidth=1.2)
    _lines(axes, runs, "test_loss")
    axes.set_ylabel("Test loss (dotted: training)")
    return figure


def gap(runs: list[Run]) -> Figure:
    """Training less test accuracy over the epochs."""
    figure, axes = _chart()
    axes.axhline(0, color=QUIET, linewidth=0.8)
    _lines(axes, runs, "generalization_gap")
    axes.set_ylabel("Training less test accuracy")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: Formatter.fix_minus(f"{100 * value:z.3g} pt")))
    return figure


def learning_rate(runs: list[Run]) -> Figure:
    """Learning rate over the epochs."""
    figure, axes = _chart()
    _lines(axes, runs, "learning_rate")
    axes.set_ylabel("Learning rate")
    return figure


def per_class(runs: list[Run]) -> Figure:
    """F1 of each class, a bar a run."""
    classes = runs[0].per_class["class"].tolist()
    bar = 0.8 / len(runs)
    figure, axes = _chart(height=1 + (0.15 * len(runs) + 0.08) * len(classes))
    for number, run in enumerate(runs):
        f1 = run.per_class.f1.to_numpy()
        places = np.arange(len(classes)) + (number - (len(runs) - 1) / 2) * bar
        axes.barh(places, f1, height=0.9 * bar, color=colours(runs)[run.name], label=run.label)
        for place, value in zip(places, f1, strict=True):
            axes.text(value, place, f" {100 * value:.0f}", va="center", fontsize=7.5, color=TEXT)
    axes.set(yticks=np.arange(len(classes)), yticklabels=classes, ylim=(len(classes) - 0.5, -0.5), xlabel="F1")
    axes.tick_params(axis="y", length=0, labelcolor=TEXT)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside upper center", ncols=min(3, len(runs)), frameon=False, handlelength=0.8, columnspacing=1)
    return figure


def reliability(run: Run, colour: str) -> Figure:
    """Accuracy against confidence in each bin of confidence, the dots as large as the bin has images."""
    figure, axes = _chart(width=3.6, height=3.6)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8)
    bins = run.calibration
    axes.vlines(bins.confidence, bins.confidence, bins.accuracy, color=colour, linewidth=1.2)
    axes.scatter(
        bins.confidence, bins.accuracy, 10 + 190 * bins.images / bins.images.max(), color=colour, clip_on=False
    )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="Confidence", ylabel="Accuracy")
    axes.grid()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set(major_locator=MultipleLocator(0.25), major_formatter=PercentFormatter(1))
    return figure


def seeds(study: pd.DataFrame, runs: list[Run]) -> Figure:
    """Test accuracy with each seed: a dot a seed, joined from run to run, and the mean of each run as a bar.

    Args:
        study: a row a seed, a column a run, fractions.
    """
    figure, axes = _chart()
    places = np.arange(len(runs))
    for _, row in study.iterrows():
        axes.plot(places, row[[run.name for run in runs]], color=LINE, linewidth=0.8, zorder=1)
    for place, run in zip(places, runs, strict=True):
        values = study[run.name]
        axes.scatter([place] * len(values), values, 22, color=colours(runs)[run.name], zorder=2)
        axes.hlines(values.mean(), place - 0.18, place + 0.18, color=colours(runs)[run.name], linewidth=2, zorder=3)
        axes.text(place + 0.22, values.mean(), f"{values.mean():.2%}", va="center", color=TEXT)
    axes.set(xticks=places, xticklabels=[run.label.replace(", ", "\n") for run in runs], ylabel="Test accuracy")
    axes.set_xlim(-0.4, len(runs) - 0.3)
    axes.tick_params(axis="x", labelcolor=TEXT, length=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    return figure


def svg(name: str, draw: Callable[..., Figure], *args) -> str:
    """The chart as an <svg> element for a page that defines --text, --quiet, --line and --run-0, --run-1, ..."""
    file = io.StringIO()
    with rc_context(STYLE):
        draw(*args).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    markup = file.getvalue()
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup[markup.index("<svg") :], flags=re.DOTALL)
    markup = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", markup, count=5)
    markup = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", markup)  # ids are the page's
    markup = re.sub(r"font: ([^;\"]*px) [^;\"]*", r"font: \1 system-ui, sans-serif", markup)
    for colour, variable in VARIABLES.items():
        markup = markup.replace(colour, f"var({variable})")
    return markup.replace("<svg", '<svg aria-hidden="true"', 1)


def png(draw: Callable[..., Figure], *args) -> bytes:
    file = io.BytesIO()
    with rc_context(STYLE):
        draw(*args).savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()


def _chart(width: float = 5, height: float = 3.3) -> tuple[Figure, Axes]:
    """An empty chart; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _lines(axes: Axes, runs: list[Run], column: str) -> None:
    """A line a run over its epochs, each with its label to the right of the axes."""
    for run in runs:
        single = "o" if len(run.history) == 1 else None
        axes.plot(run.history.epoch, run.history[column], color=colours(runs)[run.name], marker=single, linewidth=1.6)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ends = [((run.history.epoch.iloc[-1] - left) / (right - left), run.history[column].iloc[-1]) for run in runs]
    heights = _apart([(value - bottom) / (top - bottom) for _, value in ends], least=0.09)
    for run, (x, value), height in zip(runs, ends, heights, strict=True):
        y, colour = (value - bottom) / (top - bottom), colours(runs)[run.name]
        leader = {"transform": axes.transAxes, "clip_on": False, "color": colour, "linewidth": 0.8}
        axes.plot([x, 1.0, 1.03], [y, y, height], linestyle=(0, (1, 2)), **leader)
        axes.text(1.04, height, run.label, transform=axes.transAxes, va="center", color=colour, fontsize=10)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _apart(heights: list[float], least: float) -> list[float]:
    """The heights moved so that any two are at least so far apart, in the same order and with the same mean."""
    order = np.argsort(heights, kind="stable")
    moved = np.array(heights, dtype=float)[order]
    for _ in range(100):  # neighbours that are too close push each other away in equal parts
        lacking = np.clip(least - np.diff(moved), 0, None) / 2
        moved[:-1] -= lacking
        moved[1:] += lacking
    result = np.empty(len(heights))
    result[order] = moved
    return result.tolist()
