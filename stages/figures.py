"""The report's figures, drawn with matplotlib: PNG bytes that depend on the numbers alone."""

import io
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe & Ito's palette, whose colours are told apart with any colour vision; a run has one colour in every figure.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


class Curve(NamedTuple):
    """One run's line in a figure."""

    label: str
    colour: str
    history: pd.DataFrame  # plots/history/RUN.csv


def comparison(curves: list[Curve]) -> bytes:
    """Test accuracy over the epochs, and the best of each run as bars; a PNG."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    lines, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    _lines(lines, curves, "test_accuracy")
    lines.set(title="Test accuracy", ylabel="Test accuracy")

    best = [curve.history.test_accuracy.max() for curve in curves]
    drawn = bars.bar(
        [curve.label.replace(", ", "\n") for curve in curves], best, color=[curve.colour for curve in curves], width=0.6
    )
    bars.bar_label(drawn, [f"{accuracy:.2%}" for accuracy in best], padding=3)
    bars.set(title="Best test accuracy", ylim=(max(0, min(best) - 0.05), max(best) + 0.05))  # five points around
    bars.yaxis.set_major_formatter(PercentFormatter(1))
    return _png(figure)


def ablation(curves: list[Curve]) -> bytes:
    """Test accuracy and generalisation gap (training less test accuracy) over the epochs; a PNG."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    accuracy, gap = figure.subplots(1, 2)
    _lines(accuracy, curves, "test_accuracy")
    accuracy.set(title="Test accuracy", ylabel="Test accuracy")
    _lines(gap, curves, "generalization_gap")
    gap.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    gap.set(title="Generalisation gap", ylabel="Training less test accuracy")
    return _png(figure)


def _lines(axes: Axes, curves: list[Curve], column: str) -> None:
    for label, colour, history in curves:
        axes.plot(history.epoch, history[column], color=colour, label=label, marker="o" if len(history) == 1 else None)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.legend()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()
