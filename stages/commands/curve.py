"""Draw the test accuracy of each run against one parameter, from the experiments that differ in it and the seed alone.

python -m stages.commands.curve train.weight_decay --to curve.png
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from stages.reporting import drawing  # isort: skip - before matplotlib

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.commands.seeds import experiments, read_results, read_trainings
from stages.common import cli
from stages.common.dataset import read_info
from stages.common.errors import UserError, listed
from stages.common.files import write_bytes
from stages.evaluation.significance import accuracy_interval
from stages.reporting.figures import MARKERS, percent_ticks
from stages.reporting.provenance import flat
from stages.reporting.wording import percent, scientific, short

FORMS = ("png", "svg")
LABELLED = 8  # values, each of which has a label on the axis


def main(args: Namespace) -> None:
    form = args.to.suffix[1:]
    if form not in FORMS:
        raise UserError(f"--to {args.to}: choose a name that ends in .{' or .'.join(FORMS)}")
    dots, passed_over = read_dots(args.parameter)
    write_bytes(args.to, drawing.chart(draw, dots, args.parameter, read_info().counts.test, form=form))
    dots["accuracy"] = dots["accuracy"].map(percent)
    table = dots.pivot_table("accuracy", "value", "run", aggfunc=" ".join, fill_value="-", sort=False, observed=True)
    print(table.rename_axis(index=args.parameter, columns=None).to_string())
    print(f"{args.to}: a dot for each training with its 95% interval over the test images, a line through the means")
    if passed_over:
        print(f"Passed over ({len(passed_over)}): {listed(passed_over)}")


def read_dots(parameter: str) -> tuple[pd.DataFrame, list[str]]:
    """The trainings whose recipes differ from those of the workspace in this parameter and the seed only.

    Returns:
        A row for each run, value and seed: run, value, seed, accuracy, sorted by value and seed; values are numbers if
        all of them are, and JSON if not. The experiments without such a training, with the reason.

    Raises:
        UserError: no training has the parameter, or all have the same value.
    """
    own = {run: split(recipe, parameter) for run, recipe in read_trainings(None).recipes.items()}
    if all(value is None for value, _ in own.values()):
        raise UserError(f"{parameter}: no parameter of a training; one is train.weight_decay")
    found, passed_over = read_rows(None, own, parameter), []
    for name, revision in experiments():
        try:
            rows = read_rows(revision, own, parameter)
            if not rows:
                raise UserError(f"differs in more than {parameter} and the seed")
            found = rows | found  # the first of the same training counts, and that of the workspace before
        except UserError as error:
            passed_over += [f"{name} ({error})"] if name else []
    if len({value for _, value, _ in found}) < 2:
        raise UserError(f"{parameter}: has one value in all experiments; vary it with `dvc exp run --set-param`")
    table = [(run, json.loads(value), seed, accuracy) for (run, value, seed), accuracy in found.items()]
    dots = pd.DataFrame(table, columns=["run", "value", "seed", "accuracy"])
    dots["run"] = pd.Categorical(dots["run"], list(own))
    if not is_number(dots["value"]):
        dots["value"] = dots["value"].map(json.dumps)
    return dots.sort_values(["value", "seed"], kind="stable"), passed_over


def read_rows(revision: str | None, own: dict[str, Any], parameter: str) -> dict[tuple[str, str, int], float]:
    """The accuracies of a revision's trainings that belong, by run, value and seed."""
    trainings = read_trainings(revision)
    accuracies = {row.run: row.accuracy for row in read_results(revision, trainings)}
    parts = {run: split(recipe, parameter) for run, recipe in trainings.recipes.items()}
    return {
        (run, value, trainings.seed): accuracies[run]
        for run, (value, rest) in parts.items()
        if value is not None and run in own and rest == own[run][1]
    }


def split(recipe: Any, parameter: str) -> tuple[str | None, str]:
    """The value of a parameter in a training's recipe, None if it has none; and the rest. Both as JSON."""
    command, deps, params = recipe
    values = {name: value for file in params.values() for name, value in flat(file).items()}
    value = json.dumps(values.pop(parameter)) if parameter in values else None
    return value, json.dumps([command, deps, values], sort_keys=True)


def is_number(values: pd.Series) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def draw(dots: pd.DataFrame, parameter: str, images: int) -> Figure:
    """Accuracies against the values, whose axis is logarithmic if they are positive and span a factor of ten.

    Args:
        dots: see `read_dots`.
        images: how many the test set has.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    values = dots["value"].unique().tolist()
    numbers = is_number(dots["value"])
    places = dict(zip(values, values if numbers else range(len(values)), strict=True))
    low, high = min(places.values()), max(places.values())
    logarithmic = numbers and low > 0 and high >= 10 * low
    runs = list(dots.groupby("run", observed=True))
    for number, (run, of_run) in enumerate(runs):
        side = 0.008 * (number - (len(runs) - 1) / 2)  # of the axis, so that runs do not hide each other
        x = of_run["value"].map(places)
        x = x * (high / low) ** side if logarithmic else x + side * (high - low)
        accuracy = of_run["accuracy"].to_numpy()
        ends = np.array([accuracy_interval(np.arange(images) < round(a * images)) for a in accuracy])
        errors = np.clip([accuracy - ends[:, 0], ends[:, 1] - accuracy], 0, None)
        marker, color = MARKERS[number % len(MARKERS)], f"C{number}"
        axes.errorbar(x, accuracy, errors, fmt=marker, color=color, capsize=3, linewidth=1, label=run)
        axes.plot(of_run["accuracy"].groupby(x).mean(), color=color, linewidth=1.4, alpha=0.6)
    if logarithmic:
        axes.set_xscale("log")
    if len(places) <= LABELLED:
        axes.set_xticks([*places.values()], [scientific(v) if numbers else short(v) for v in places])
        axes.minorticks_off()
    axes.set(xlabel=parameter, ylabel="Test accuracy, with 95% interval")
    percent_ticks(axes.yaxis)
    axes.grid(axis="y")
    axes.legend()
    return figure


if __name__ == "__main__":
    parser = cli.parser("curve", __doc__)
    parser.add_argument("parameter", help="its name in params.yaml, such as train.weight_decay")
    parser.add_argument("--to", type=Path, default=Path("curve.png"), metavar="FILE", help="default: curve.png")
    cli.run(main, parser)
