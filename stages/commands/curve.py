"""Draw the test accuracy of each run against one parameter, from the experiments that differ in it and the seed alone.

python -m stages.commands.curve train.weight_decay --to curve.png
"""

from argparse import Namespace
from pathlib import Path

from stages.reporting import figures  # isort: skip - before matplotlib

import pandas as pd
from matplotlib.figure import Figure

from stages.commands.seeds import alike, read_trainings
from stages.common import cli
from stages.common.errors import UserError, printable, shown
from stages.common.files import write_bytes
from stages.reporting.wording import percent

ACCURACY = ["accuracy", "low", "high"]  # the ends of its 95 % interval over the test images


def main(args: Namespace) -> None:
    """Write the chart, and print its numbers."""
    evaluation, trainings = read_trainings()
    dots, to = dots_of(trainings, args.parameter), args.to.parent / f"{args.to.stem}.png"
    write_bytes(to, figures.draw(draw, dots, args.parameter)[1])
    print(dots.to_string(index=False, formatters=dict.fromkeys(ACCURACY, percent)))
    print(f"{printable(to)}: value is {args.parameter}; low to high is the 95% interval over the test images.")
    if evaluation.parameters["data.validation"]:
        print("These are test accuracies: choose a value by the validation accuracy (plots/curves.csv).")
    else:
        print(f"The best of these {dots.value.nunique()} was chosen on the test set, and looks better than it is;")
        print("with data.validation above 0 there are images to choose on.")


def dots_of(trainings: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """Return the trainings that equal those of the workspace in all but this parameter and the seed.

    Returns:
        Columns run, value (a number or a text), seed, accuracy, low, high; sorted by the first three.

    Raises:
        UserError: there are fewer than two values.
    """
    of = alike(trainings, parameter, "seed")
    dots = of.assign(value=[parameters.get(parameter) for parameters in of.parameters]).dropna(subset="value")
    if dots.value.dtype.kind not in "if":
        dots["value"] = dots.value.map(str)
    if dots.value.nunique() < 2:
        raise UserError(f"{shown(parameter)} has no two values in the experiments; vary one by `dvc exp run -S`")
    keys = ["run", "value", "seed"]
    return dots[[*keys, *ACCURACY]].drop_duplicates(keys).sort_values(keys)


def draw(dots: pd.DataFrame, parameter: str) -> Figure:
    """Draw accuracies against the values, whose axis is logarithmic if they are positive and span a factor of ten.

    Args:
        dots: see `dots_of`.
    """
    figure, axes = figures.blank(6.5, 4)
    for number, (run, of) in enumerate(dots.groupby("run")):
        errors, marker = (of.accuracy - of.low, of.high - of.accuracy), figures.MARKERS[number % 7]
        axes.errorbar(of.value, of.accuracy, errors, fmt=marker, color=f"C{number}", capsize=3, label=run)
        axes.plot(of.groupby("value").accuracy.mean(), color=f"C{number}", linestyle=figures.DASHES[number % 7])
    if dots.value.dtype.kind in "if" and 0 < 10 * dots.value.min() <= dots.value.max():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=parameter, ylabel="Test accuracy, with 95% interval")
    axes.yaxis.set_major_formatter(lambda value, _: figures.tick_percent(value))
    axes.grid(axis="y")
    axes.legend()
    return figure


if __name__ == "__main__":
    parser = cli.parser("curve", __doc__)
    parser.add_argument("parameter", help="its name in params.yaml, such as train.weight_decay")
    parser.add_argument("--to", type=Path, default=Path("curve.png"), metavar="PNG", help="default: %(default)s")
    cli.run(main, parser)
