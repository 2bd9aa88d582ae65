"""Draw the test accuracy of each run against one parameter, from the experiments that differ in it and the seed alone.

python -m stages.commands.curve train.weight_decay --to curve.png
"""

import json
from argparse import Namespace
from pathlib import Path

from stages.reporting import figures  # isort: skip - before matplotlib

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.commands.seeds import equal_but, read_trainings
from stages.common import cli
from stages.common.errors import UserError, shown
from stages.common.files import write_bytes
from stages.reporting.wording import percent, percent_range, scientific

FORMS = (".svg", ".png")  # in the order of what figures.draw returns


def main(args: Namespace) -> None:
    """Write the chart, and print its numbers."""
    if args.to.suffix not in FORMS:
        raise UserError(f"--to {args.to}: choose a name that ends in {' or '.join(FORMS)}")
    dots, validated = read_dots(args.parameter)
    write_bytes(args.to, figures.draw(draw, dots, args.parameter)[FORMS.index(args.to.suffix)])
    values, ranges = dots.value.map(written), dots.interval.map(percent_range)
    table = dots.assign(value=values, accuracy=dots.accuracy.map(percent), interval=ranges)
    print(table.rename(columns={"value": args.parameter, "interval": "95% interval"}).to_string(index=False))
    print(f"{args.to}: each training with its interval over the test images, and the means over the seeds")
    if validated:
        print("These are test accuracies: choose a value by the validation accuracy (plots/curves.csv).")
    else:
        print(f"The best of these {values.nunique()} values is chosen on the test set, and so looks better than it is;")
        print("with data.validation above 0 there are images to choose on.")


def read_dots(parameter: str) -> tuple[pd.DataFrame, bool]:
    """Read the trainings that equal those of the workspace in all but this parameter and the seed.

    Returns:
        Columns run, value, seed, accuracy, interval, in this order; and whether there are validation images.

    Raises:
        UserError: no training of the workspace has the parameter, or all trainings have the same value.
    """
    own, others = read_trainings()
    if not any(parameter in training.parameters for training in own):
        raise UserError(f"{shown(parameter)} is no parameter of a training; one is train.weight_decay")
    rows = [
        (of.run, of.parameters[parameter], of.parameters["seed"], of.tested.accuracy, of.tested.interval)
        for of in equal_but(own, others, parameter, "seed")
        if parameter in of.parameters
    ]
    dots = pd.DataFrame(rows, columns=["run", "value", "seed", "accuracy", "interval"])
    if not all(isinstance(value, (int, float)) for value in dots.value):
        dots["value"] = dots.value.map(written)
    if dots.value.nunique() < 2:
        raise UserError(f"{parameter} has one value in all experiments; vary it with `dvc exp run --set-param`")
    return dots.sort_values(["run", "value", "seed"]), bool(own[0].evaluation.parameters["data.validation"])


def written(value: object) -> str:
    """Write a value as params.yaml has it."""
    return scientific(value) if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def draw(dots: pd.DataFrame, parameter: str) -> Figure:
    """Draw accuracies against the values, whose axis is logarithmic if they are positive and span a factor of ten.

    Args:
        dots: see `read_dots`.
    """
    figure, axes = figures.blank(6.5, 4)
    for number, (run, of_run) in enumerate(dots.groupby("run")):
        marker, dashes = figures.MARKERS[number % 7], figures.DASHES[number % 7]
        low, high = np.stack(of_run.interval).T
        errors = of_run.accuracy - low, high - of_run.accuracy
        look = {"color": f"C{number}", "elinewidth": 1, "capsize": 3 + number, "label": run}
        axes.errorbar(of_run.value, of_run.accuracy, errors, fmt=marker, **look)
        axes.plot(of_run.groupby("value").accuracy.mean(), color=f"C{number}", linestyle=dashes)
    if dots.value.dtype != object and 0 < 10 * dots.value.min() <= dots.value.max():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: scientific(value))
    axes.set(xlabel=parameter, ylabel="Test accuracy, with 95% interval")
    axes.yaxis.set_major_formatter(lambda value, _: figures.tick_percent(value))
    axes.grid(axis="y")
    axes.legend()
    return figure


if __name__ == "__main__":
    parser = cli.parser("curve", __doc__)
    parser.add_argument("parameter", help="its name in params.yaml, such as train.weight_decay")
    parser.add_argument("--to", type=Path, default=Path("curve.png"), metavar="FILE", help="default: %(default)s")
    cli.run(main, parser)
