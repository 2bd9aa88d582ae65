"""The content of the report in numbers: tables whose cells are texts, for the page, report.md and the terminal."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.evaluation.significance import seeds_needed
from stages.reporting.results import Results, Run, decay
from stages.reporting.wording import LONG, duration, p_value, percent, percent_range, points, points_range, short

MANY_CLASSES = 20  # above which the report names the most confused pairs, and the worst and best classes
NAMED = 10  # of each of those


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


def expert_table(runs: list[Run]) -> pd.DataFrame:
    """Return what else was measured on the test images, a row for each run."""
    rows = (
        {
            "Run": short(run.name),
            "Best epoch": f"{run.tested.best_epoch}",
            "Top-2 accuracy": percent(run.tested.top2),
            "Loss": f"{run.tested.loss:.4f}",
            "Calibration error": percent(run.tested.ece),
            "By chance, if calibrated": percent(run.tested.ece_expected),
            "Calibrating temperature": f"{run.tested.temperature:.2f}" if run.tested.temperature else "none",
        }
        for run in runs
    )
    return pd.DataFrame(rows)


def seed_table(results: Results) -> pd.DataFrame:
    """Return mean and spread of the test accuracy of each run over its seeds."""
    columns = {"Seeds": "count", "Mean": "mean", "Standard deviation": "std", "Lowest": "min", "Highest": "max"}
    table = results.seed_accuracies.agg([*columns.values()]).T.set_axis([*columns], axis=1).query("Seeds > 0")
    table = table.map(percent).assign(Seeds=table.Seeds.map("{:.0f}".format))
    return table.rename_axis("Run").rename(short).reset_index()


def recipe_table(results: Results) -> pd.DataFrame:
    """Return the difference between the recipes of each pair with enough seeds, for new seeds and new images."""
    rows, margin = [], results.parameters["study.margin"]
    for pair, compared in ((pair, pair.recipes) for pair in results.pairs if pair.recipes):
        count, low, high = seeds_needed(compared, margin)
        rows += [
            {
                "First minus second, points": " and ".join(pair.labels),
                "Mean": points(compared.difference),
                "95% interval": points_range(compared.interval),
                "p": p_value(compared.p).removeprefix("p = "),
                "Adjusted p": p_value(pair.p).removeprefix("p = "),
                f"Seeds to find {100 * margin:g} points": f"{count:,} ({low:,} to {high:,})",
            }
        ]
    return pd.DataFrame(rows)


def confused(run: Run) -> pd.DataFrame:
    """Return the pairs of classes that the run confuses most often, a row each."""
    wrong = run.predictions[run.predictions.actual != run.predictions.predicted]
    counts = wrong.value_counts(["actual", "predicted"]).head(NAMED)
    rows = [[short(name, LONG) for name in names] + [f"{count:,}"] for names, count in counts.items()]
    return pd.DataFrame(rows, columns=["Class", "Taken for", "Images"])


def extremes(runs: list[Run]) -> list[int]:
    """Return the classes to name, by number: all, or of many those with the lowest and highest mean F1, worst first."""
    mean = np.mean([run.per_class.f1 for run in runs], axis=0)
    order = np.argsort(mean, kind="stable").tolist()
    return sorted(order) if len(order) <= MANY_CLASSES else order[:NAMED] + order[-NAMED:]


def class_table(runs: list[Run], classes: Sequence[int]) -> pd.DataFrame:
    """Return precision, recall and F1 in percent, a row for each of the classes and runs."""
    rows = (
        [short(row["class"], LONG), short(row["run"]), f"{row['images']:,}", *map(percent, row["precision":])]
        for number in classes
        for row in (run.per_class.loc[number] for run in runs)
    )
    return pd.DataFrame(rows, columns=["Class", "Run", "Images", "Precision", "Recall", "F1"])


def machine_table(runs: list[Run]) -> pd.DataFrame:
    """Return what metrics/timing/ has of each run but its time, a row each."""
    table = pd.DataFrame([{"run": short(run.name)} | run.timing for run in runs]).drop(columns="train_seconds")
    table["images_per_second"] = table["images_per_second"].map("{:,.0f}".format)
    return table.rename(columns=lambda name: name.replace("_", " ").capitalize())
