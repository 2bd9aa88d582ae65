"""The content of the report in numbers: tables whose cells are texts, for the page, report.md and the terminal."""

from collections.abc import Sequence, Sized
from functools import partial

import numpy as np
import pandas as pd

from stages.evaluation.significance import MOST_SEEDS, compare_over_seeds, seeds_to_find
from stages.reporting.findings import seed_accuracies
from stages.reporting.results import Pair, Results, Run
from stages.reporting.wording import (
    LONG,
    duration,
    percent,
    percent_range,
    points,
    points_range,
    scientific,
    short,
    signed,
)

MANY_CLASSES = 30  # above which the report names the most confused pairs, and the worst and best classes
NAMED = 10  # of each of those
SMALL = 0.003  # a difference in accuracy, for which the report says how many seeds would find it


def few(classes: Sized) -> bool:
    return len(classes) <= MANY_CLASSES


def summary(runs: list[Run]) -> str:
    """The comparison of the runs as 80 columns of a terminal hold it."""
    rows = (
        {
            "run": short(run.name, 28),
            "parameters": f"{run.tested.parameters:,}",
            "epochs": run.tested.epochs,
            "accuracy": percent(run.tested.accuracy),
            "gap, pt": points(run.metrics.gap),
            "time": duration(run.timing.train_seconds),
        }
        for run in runs
    )
    return pd.DataFrame(rows).to_string(index=False, line_width=1000)


def run_table(runs: list[Run], keep: str) -> pd.DataFrame:
    """A row for each run."""
    last = {"Last epoch": lambda run: percent(run.metrics.last_accuracy)} if keep == "best" else {}
    columns = {
        "Run": lambda run: short(run.name),
        "Model": lambda run: short(run.tested.model, 40),
        "Weight decay": lambda run: scientific(run.tested.weight_decay),
        "Parameters": lambda run: f"{run.tested.parameters:,}",
        "Epochs": lambda run: str(run.tested.epochs),
        "Test accuracy": lambda run: percent(run.tested.accuracy),
        "95% interval": lambda run: percent_range(run.tested.interval),
        **last,
        "Gap, points": lambda run: points(run.metrics.gap),
        "Time": lambda run: duration(run.timing.train_seconds),
    }
    return pd.DataFrame({name: list(map(show, runs)) for name, show in columns.items()})


def pair_table(pair: Pair, keep: str) -> pd.DataFrame:
    """A row for each figure of two runs, and the difference that the first makes."""

    def row(name: str, show, of, difference=None) -> list[str]:
        first, second = of(pair.first), of(pair.second)
        return [name, show(first), show(second), difference(first - second) if difference else ""]

    best = [
        row("Test accuracy, last epoch", percent, lambda run: run.metrics.last_accuracy, points),
        row("Best epoch", str, lambda run: run.metrics.best_epoch),
    ]
    rows = [
        row("Test accuracy", percent, lambda run: run.tested.accuracy, points),
        row("95% interval", percent_range, lambda run: run.tested.interval),
        *(best if keep == "best" else []),
        row("Top-2 accuracy", percent, lambda run: run.tested.top2, points),
        row("Loss", "{:.4f}".format, lambda run: run.tested.loss, partial(signed, digits=4)),
        row("Generalisation gap, points", points, lambda run: run.metrics.gap, points),
        row("Calibration error", percent, lambda run: run.tested.ece, points),
        row("Calibrating temperature", lambda t: f"{t:.2f}" if t else "none", lambda run: run.tested.temperature),
        row("Images a second", "{:,.0f}".format, lambda run: run.timing.images_per_second),
    ]
    return pd.DataFrame(rows, columns=["Figure", *pair.names, "Difference"])


def study_tables(study: pd.DataFrame, results: Results) -> dict:
    """Mean and spread of each run over the seeds, and the difference between the runs of each pair."""
    accuracy, last = study["accuracy"], study["last_accuracy"]
    by_run = pd.DataFrame(
        {
            "Run": short(run.name),
            "Mean": percent(accuracy[run.name].mean()),
            "Standard deviation": f"{100 * accuracy[run.name].std():.2f}",
            "Lowest": percent(accuracy[run.name].min()),
            "Highest": percent(accuracy[run.name].max()),
            "Mean, last epoch": percent(last[run.name].mean()),
        }
        for run in results.runs
    )
    compared = [(pair, seed_accuracies(pair, study)) for pair in results.pairs if not pair.same_recipe]
    by_pair = pd.DataFrame(_seed_row(pair.joined("minus"), *accuracies) for pair, accuracies in compared)
    return {"seeds": study.index.tolist(), "runs": by_run, "pairs": by_pair}


def _seed_row(title: str, first: np.ndarray, second: np.ndarray, images: int) -> dict[str, str]:
    compared, seeds = compare_over_seeds(first, second, images), seeds_to_find(SMALL, first, second, images)
    return {
        "Difference, points": title,
        "Mean": points(compared.difference),
        "95% interval": points_range(compared.interval),
        "p": f"{compared.p:.2g}",
        f"Seeds to find {100 * SMALL:g} points": f"{'≥ ' if seeds == MOST_SEEDS else ''}{seeds:,}",
    }


def confused(run: Run) -> pd.DataFrame:
    """The pairs of classes that the run confuses most often, a row each."""
    wrong = run.predictions[run.predictions.actual != run.predictions.predicted]
    counts = wrong.groupby(["actual", "predicted"], as_index=False).size()
    counts = counts.sort_values("size", ascending=False, kind="stable").head(NAMED)
    images = run.predictions.actual.value_counts().to_dict()
    return pd.DataFrame(
        (
            [short(actual, LONG), short(predicted, LONG), f"{size:,}", f"{size / images[actual]:.1%}"]
            for actual, predicted, size in counts.itertuples(index=False)
        ),
        columns=["Class", "Taken for", "Images", "Share of the class"],
    )


def extremes(runs: list[Run]) -> list[int]:
    """The classes to name, by number: all, or of many those with the lowest and the highest mean F1, worst first."""
    mean = np.mean([run.per_class.f1 for run in runs], axis=0)
    order = np.argsort(mean, kind="stable").tolist()
    return sorted(order) if few(order) else order[:NAMED] + order[-NAMED:]


def class_table(runs: list[Run], classes: Sequence[int]) -> pd.DataFrame:
    """Precision, recall and F1 in percent, a row for each of the classes and runs."""
    scores = {run.name: run.per_class.to_dict("records") for run in runs}
    rows = (
        [short(of["class"], LONG), short(name), f"{of['images']:,}"]
        + [percent(of[figure]) for figure in ("precision", "recall", "f1")]
        for number in classes
        for name, of in ((name, by_class[number]) for name, by_class in scores.items())
    )
    return pd.DataFrame(rows, columns=["Class", "Run", "Images", "Precision", "Recall", "F1"])
