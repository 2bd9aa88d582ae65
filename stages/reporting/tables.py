"""The content of the report in numbers: tables whose cells are texts, for the page, report.md and the terminal."""

from collections.abc import Sequence, Sized
from functools import partial

import numpy as np
import pandas as pd

from stages.evaluation.significance import seeds_needed
from stages.reporting.results import Pair, Results, Run, decay
from stages.reporting.wording import LONG, duration, percent, percent_range, points, points_range, short, signed

MANY_CLASSES = 30  # above which the report names the most confused pairs, and the worst and best classes
NAMED = 10  # of each of those


def few(classes: Sized) -> bool:
    return len(classes) <= MANY_CLASSES


def run_table(runs: list[Run], held_out: str = "test") -> pd.DataFrame:
    """Return a row for each run, whose epochs were tested on the `test` or the `validation` images."""
    rows = (
        {
            "Run": short(run.name),
            "Model": short(run.tested.title, 40),
            "Weight decay": decay(run.tested),
            "Parameters": f"{run.tested.parameters:,}",
            "Epochs": f"{len(run.history)}",
            "Test accuracy": percent(run.tested.accuracy),
            "95% interval": percent_range(run.tested.interval),
            f"{held_out.capitalize()}, last epoch": percent(run.tested.last_accuracy),
            "Gap, points": points(run.tested.gap),
            "Time": duration(run.timing["train_seconds"]),
        }
        for run in runs
    )
    return pd.DataFrame(rows)


def summary(runs: list[Run]) -> str:
    """Compare the runs as 80 columns of a terminal hold it."""
    columns = ["Run", "Parameters", "Epochs", "Test accuracy", "Gap, points", "Time"]
    shorter = {"Test accuracy": "Accuracy", "Gap, points": "Gap, pt"}
    return run_table(runs)[columns].rename(columns=shorter).to_string(index=False, line_width=1000)


def pair_table(pair: Pair, held_out: str) -> pd.DataFrame:
    """Return a row for each figure of two runs, and the difference that the first makes; `held_out` as above."""

    def row(name: str, show, of, difference=None) -> list[str]:
        first, second = of(pair.first.tested), of(pair.second.tested)
        return [name, show(first), show(second), difference(first - second) if difference else ""]

    rows = [
        row("Test accuracy", percent, lambda run: run.accuracy, points),
        row("95% interval", percent_range, lambda run: run.interval),
        row(f"{held_out.capitalize()} accuracy, last epoch", percent, lambda run: run.last_accuracy, points),
        row("Best epoch", str, lambda run: run.best_epoch),
        row("Top-2 accuracy", percent, lambda run: run.top2, points),
        row("Loss", "{:.4f}".format, lambda run: run.loss, partial(signed, digits=4)),
        row("Generalisation gap, points", points, lambda run: run.gap, points),
        row("Calibration error", percent, lambda run: run.ece, points),
        row("By chance, if calibrated", percent, lambda run: run.ece_expected),
        row("Calibrating temperature", lambda t: f"{t:.2f}" if t else "none", lambda run: run.temperature),
    ]
    return pd.DataFrame(rows, columns=["Figure", *pair.labels, "Difference"])


def seed_table(results: Results) -> pd.DataFrame:
    """Return mean and spread of the test accuracy of each run over its seeds."""
    spread = results.seed_accuracies.describe().T.query("count > 0")
    columns = {"Mean": "mean", "Standard deviation": "std", "Lowest": "min", "Highest": "max"}
    texts = {title: spread[name].map(percent) for title, name in columns.items()}
    return pd.DataFrame({"Run": spread.index, "Seeds": spread["count"].map("{:.0f}".format), **texts})


def recipe_table(results: Results) -> pd.DataFrame:
    """Return the difference between the recipes of each pair with enough seeds, for new seeds and new images."""
    margin = results.parameters["study.margin"]
    columns = [
        "First minus second, points",
        "Mean",
        "95% interval",
        "p",
        "Adjusted p",
        f"Seeds to find {100 * margin:g} points",
    ]
    rows = []
    for pair, compared in ((pair, pair.recipes) for pair in results.pairs):
        if not compared:
            continue
        count, low, high = seeds_needed(compared, margin)
        row = [" and ".join(pair.labels), points(compared.difference), points_range(compared.interval)]
        rows.append([*row, f"{compared.p:.2g}", f"{pair.p:.2g}", f"{count:,} ({low:,} to {high:,})"])
    return pd.DataFrame(rows, columns=columns)


def confused(run: Run) -> pd.DataFrame:
    """Return the pairs of classes that the run confuses most often, a row each."""
    wrong = run.predictions[run.predictions.actual != run.predictions.predicted]
    counts = wrong.groupby(["actual", "predicted"]).size().sort_values(ascending=False, kind="stable").head(NAMED)
    images = run.predictions.actual.value_counts()
    rows = [
        [short(actual, LONG), short(predicted, LONG), f"{count:,}", f"{count / images[actual]:.1%}"]
        for (actual, predicted), count in counts.items()
    ]
    return pd.DataFrame(rows, columns=["Class", "Taken for", "Images", "Share of the class"])


def extremes(runs: list[Run]) -> list[int]:
    """Return the classes to name, by number: all, or of many those with the lowest and highest mean F1, worst first."""
    mean = np.mean([run.per_class.f1 for run in runs], axis=0)
    order = np.argsort(mean, kind="stable").tolist()
    return sorted(order) if few(order) else order[:NAMED] + order[-NAMED:]


def class_table(runs: list[Run], classes: Sequence[int]) -> pd.DataFrame:
    """Return precision, recall and F1 in percent, a row for each of the classes and runs."""
    rows = (
        [short(row["class"], LONG), short(row["run"]), f"{row['images']:,}"]
        + [percent(row[score]) for score in ("precision", "recall", "f1")]
        for number in classes
        for row in (run.per_class.loc[number] for run in runs)
    )
    return pd.DataFrame(rows, columns=["Class", "Run", "Images", "Precision", "Recall", "F1"])


def machine_table(runs: list[Run]) -> pd.DataFrame:
    """Return what metrics/timing/ has of each run but its time, a row each."""
    table = pd.DataFrame([{"run": short(run.name)} | run.timing for run in runs]).drop(columns="train_seconds")
    table["images_per_second"] = table["images_per_second"].map("{:,.0f}".format)
    return table.rename(columns=lambda name: name.replace("_", " ").capitalize())
