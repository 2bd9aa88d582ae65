"""The report's charts: functions that draw one each, with colours of whichever style is in force.

A run has one colour and one marker in every chart; the marker stands at the end of its lines.
"""

import math
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator, MultipleLocator, PercentFormatter

from stages.reporting.results import Run
from stages.reporting.tables import extremes
from stages.reporting.wording import percent, short

MARKERS = "osD^v"


def accuracies(runs: list[Run]) -> Figure:
    """Test accuracy of each run with its 95 % interval, on an axis as wide as the notebook's: five points beyond."""
    figure, axes = _axes(height=1.1 + 0.5 * len(runs))
    values = np.array([run.tested.accuracy for run in runs])
    low, high = np.array([run.tested.interval for run in runs]).T
    places = np.arange(len(runs))
    axes.barh(places, values, 0.62, color=[f"C{place}" for place in places], alpha=0.55)
    errors = np.clip([values - low, high - values], 0, None)
    axes.errorbar(values, places, xerr=errors, fmt="none", ecolor=rcParams["text.color"], capsize=4, linewidth=1.4)
    for place, (value, end) in enumerate(zip(values, high, strict=True)):
        axes.text(end, place, f"  {percent(value)}", va="center")
    left, right = max(low.min() - 0.05, 0), high.max() + 0.05
    axes.set(xlim=(left, right + 0.12 * (right - left)), xlabel="Test accuracy, with 95% interval")
    axes.set(yticks=places, yticklabels=[short(run.label, 30) for run in runs], ylim=(len(runs) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0, labelcolor=rcParams["text.color"])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%" if value <= 1 else ""))
    return figure


def accuracy(runs: list[Run]) -> Figure:
    """Test accuracy over the epochs."""
    figure, axes = _curves(runs, "test_accuracy")
    axes.set_ylabel("Test accuracy")
    percent_ticks(axes.yaxis)
    return figure


def loss(runs: list[Run]) -> Figure:
    """Test loss, and dotted training loss, over the epochs."""
    figure, axes = _curves(runs, "test_loss", "train_loss")
    axes.set_ylabel("Test loss (dotted: training)")
    return figure


def gap(runs: list[Run]) -> Figure:
    """Training minus test accuracy over the epochs."""
    figure, axes = _curves(runs, "generalization_gap")
    axes.axhline(0, color=rcParams["axes.edgecolor"], linewidth=0.8, zorder=1)
    axes.set_ylabel("Training minus test accuracy")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: Formatter.fix_minus(f"{100 * value:z.3g} pt")))
    return figure


def learning_rate(runs: list[Run]) -> Figure:
    """Learning rate over the epochs."""
    figure, axes = _curves(runs, "learning_rate")
    axes.set(ylabel="Learning rate", ylim=(0, 1.05 * max(run.history.learning_rate.max() for run in runs) or 1))
    return figure


def per_class(runs: list[Run], width: float = 5) -> Figure:
    """F1 of each class, or of many classes the worst and the best, a bar for each run."""
    classes = extremes(runs)
    bar = 0.8 / len(runs)
    figure, axes = _axes(width, height=0.8 + (0.17 * len(runs) + 0.08) * len(classes))
    for number, run in enumerate(runs):
        f1 = run.per_class.f1[classes].to_numpy()
        places = np.arange(len(classes)) + (number - (len(runs) - 1) / 2) * bar
        axes.barh(places, f1, height=0.9 * bar, color=f"C{number}")
        for place, value in zip(places, f1, strict=True):
            axes.text(value, place, f" {100 * value:.1f}", va="center", fontsize=8)
    names = [short(name) for name in runs[0].per_class["class"][classes]]
    axes.set(yticks=np.arange(len(classes)), yticklabels=names, ylim=(len(classes) - 0.5, -0.5), xlabel="F1")
    axes.tick_params(axis="y", length=0, labelcolor=rcParams["text.color"])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    _legend(figure, runs, "s", columns=2 if width < 6 else 4)
    return figure


def reliability(run: Run, number: int) -> Figure:
    """Accuracy against confidence in each bin of confidence, the dots as large as the bin has images."""
    figure, axes = _axes(3.6, 3.6)
    axes.plot([0, 1], [0, 1], color=rcParams["axes.edgecolor"], linewidth=0.8)
    bins, colour = run.calibration, f"C{number}"
    sizes = 10 + 190 * bins.images / bins.images.max()
    axes.vlines(bins.confidence, bins.confidence, bins.accuracy, color=colour, linewidth=1.2)
    axes.scatter(bins.confidence, bins.accuracy, sizes, color=colour, clip_on=False)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="Confidence", ylabel="Accuracy")
    axes.grid()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set(major_locator=MultipleLocator(0.25), major_formatter=PercentFormatter(1))
    return figure


def seeds(runs: list[Run], study: pd.DataFrame) -> Figure:
    """Test accuracy with each seed: a dot for each, joined from run to run, and the mean of each run as a bar.

    Args:
        study: a row for each seed, a column for each run, fractions.
    """
    figure, axes = _axes(height=1.3 + 0.6 * len(runs))
    places = np.arange(len(runs))
    for _, row in study.iterrows():
        axes.plot(row[[run.name for run in runs]], places, color=rcParams["grid.color"], linewidth=0.8, zorder=1)
    for place, run in zip(places, runs, strict=True):
        values, colour = study[run.name], f"C{place}"
        axes.scatter(values, [place] * len(values), 22, color=colour, zorder=2)
        axes.vlines(values.mean(), place - 0.18, place + 0.18, color=colour, linewidth=2, zorder=3)
        axes.text(values.mean(), place - 0.24, percent(values.mean()), ha="center", va="bottom", fontsize=10)
    axes.set(yticks=places, yticklabels=[short(run.label, 30) for run in runs], ylim=(len(runs) - 0.6, -0.7))
    axes.tick_params(axis="y", labelcolor=rcParams["text.color"], length=0)
    axes.margins(x=0.12)
    axes.set_xlabel("Test accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    percent_ticks(axes.xaxis)
    return figure


def percent_ticks(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _axes(width: float = 5, height: float = 3.2) -> tuple[Figure, Axes]:
    """An empty chart; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _curves(runs: list[Run], column: str, dotted: str | None = None) -> tuple[Figure, Axes]:
    """A line for each run over its epochs, on an axis that fits the second half of a training of more than ten.

    The first epochs may leave the axis: on one that held them, the ends of the runs could not be told apart.
    """
    figure, axes = _axes()
    late = []
    for number, run in enumerate(runs):
        history, colour = run.history, f"C{number}"
        if dotted:
            axes.plot(history.epoch, history[dotted], ":", color=colour, linewidth=1.2)
        (line,) = axes.plot(history.epoch, history[column], color=colour, marker=MARKERS[number % len(MARKERS)])
        line.set(markevery=[-1], markersize=max(9 - 1.5 * number, 5))
        line.set_linewidth(max(2.6 - 0.5 * number, 1.2))  # where another line covers it, it shows on both sides
        half = len(history) // 2 if len(history) > 10 else 0
        late += [history[name][half:] for name in (column, dotted) if name]
    low, high = pd.concat(late).min(), pd.concat(late).max()
    margin = 0.06 * (high - low) or 0.01
    axes.set(xlabel="Epoch", ylim=(low - margin, high + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    _legend(figure, runs, MARKERS, columns=2)
    return figure, axes


def _legend(figure: Figure, runs: list[Run], markers: str, columns: int) -> None:
    """Name the runs above the chart, which grows by the legend's height."""
    handles = [
        Line2D([], [], color=f"C{number}", marker=marker, label=short(run.label, 30))
        for number, (run, marker) in enumerate(zip(runs, cycle(markers), strict=False))
    ]
    if markers != MARKERS:
        for handle in handles:
            handle.set_linestyle("none")
    figure.set_figheight(figure.get_figheight() + 0.24 * math.ceil(len(runs) / columns))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=10, columnspacing=1.2)
