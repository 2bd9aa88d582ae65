"""What the results say, in sentences and tables: the content of the report, without its form."""

from functools import partial

import pandas as pd

from stages.core.dataset import DatasetInfo
from stages.core.significance import SIGNIFICANT, Comparison, compare_over_seeds
from stages.params import Params
from stages.results import Pair, Run
from stages.wording import duration, percent, percent_range, points, points_range, scientific, signed, verdict

# What makes an experiment the full one
FULL_IMAGES = {"train": 50_000, "test": 10_000}
FULL_EPOCHS = {"cnn": 50, "resnet": 100, "resnet_ablation": 100}
FULL_CHANNELS = 64
ENOUGH_SEEDS = 3  # for a verdict over seeds


def caveats(info: DatasetInfo, params: Params, runs: list[Run]) -> list[str]:
    """In what this is less than the full experiment."""
    found = []
    if any(info.counts[split] < full for split, full in FULL_IMAGES.items()):
        found.append(
            f"few images: {info.counts['train']:,} to train on and {info.counts['test']:,} to test with; CIFAR-10 "
            f"has {FULL_IMAGES['train']:,} and {FULL_IMAGES['test']:,}"
        )
    short = [run for run in runs if run.metrics["epochs"] < FULL_EPOCHS.get(run.name, 0)]
    if short:
        found.append(
            "short training: "
            + ", ".join(f"{run.name} {run.metrics['epochs']} of {FULL_EPOCHS[run.name]} epochs" for run in short)
        )
    if params.resnet.base_channels < FULL_CHANNELS:
        found.append(f"narrow ResNets: {params.resnet.base_channels} channels at the start in place of {FULL_CHANNELS}")
    return found


def answer(pair: Pair, study: pd.DataFrame | None) -> dict:
    """A question of the experiment, its verdict, and what that rests on."""
    comparison, (only_first, only_second) = pair.comparison, pair.only_right
    accuracies = [percent(run.evaluation["accuracy"]) for run in (pair.first, pair.second)]
    words = pair.verdict
    facts = [
        f"On {len(pair.first.predictions):,} test images: {' against '.join(accuracies)}, "
        f"{points(comparison.difference)} points, 95% interval {points_range(comparison.interval)} (paired bootstrap), "
        f"p = {comparison.p:.2g} (McNemar's exact test). Right in the first alone: {only_first:,}, "
        f"in the second alone: {only_second:,}."
    ]
    if study is not None and len(study) >= ENOUGH_SEEDS:
        over_seeds = compare_seeds(pair, study)
        words = verdict(pair.subject, pair.names, over_seeds, f"{len(study)} seeds")
        seeds = (
            f"Over {len(study)} seeds: {points(over_seeds.difference)} points on average, 95% interval "
            f"{points_range(over_seeds.interval)}, p = {over_seeds.p:.2g} (paired t test)."
        )
        facts = [seeds, *facts]
    subject = f"{pair.subject} " if pair.subject else ""
    return {"question": f"Is {subject}{pair.names[0]} better than {pair.names[1]}?", "verdict": words, "facts": facts}


def notes(params: Params, study: pd.DataFrame | None, foreign_study: bool) -> list[str]:
    """How to read the verdicts."""
    sentences = [f"A verdict speaks of a difference where p is below {SIGNIFICANT}."]
    if params.train.keep == "best":
        sentences.append(
            "The weights tested are those of the epoch with the best test accuracy, as in the experiment that this "
            "repeats: chosen by the test set itself, they flatter every run. The tables give the last epoch beside it, "
            "which does not."
        )
    if study is None:
        sentences.append(
            "Each run is one training, so the verdicts hold for these models; `make seeds` shows what other seeds give."
        )
    elif len(study) < ENOUGH_SEEDS:
        sentences.append(f"{len(study)} seeds are too few for a verdict over seeds.")
    if foreign_study:
        sentences.append("`plots/seeds.csv` holds a study of another experiment, which is not shown.")
    return sentences


def compare_seeds(pair: Pair, study: pd.DataFrame) -> Comparison:
    return compare_over_seeds(*(study["accuracy"][run.name].to_numpy() for run in (pair.first, pair.second)))


def pair_table(pair: Pair, keep: str) -> pd.DataFrame:
    """A row a figure: the second run's, the first's, and the difference that the first makes."""
    one, other = pair.names if pair.names[0] != pair.names[1] else (pair.first.name, pair.second.name)
    kept = "Test accuracy, best epoch" if keep == "best" else "Test accuracy"

    def row(name: str, show, of, difference=None) -> dict:
        first, second = of(pair.first), of(pair.second)
        change = difference(first - second) if difference else ""
        return {"Metric": name, other: show(second), one: show(first), "Difference": change}

    rows = [
        row(kept, percent, lambda run: run.evaluation["accuracy"], points),
        row("95% interval", percent_range, lambda run: run.evaluation["interval"]),
    ]
    if keep == "best":
        rows += [
            row("Test accuracy, last epoch", percent, lambda run: run.metrics["final_test_accuracy"], points),
            row("Best epoch", str, lambda run: run.metrics["best_epoch"]),
        ]
    rows += [
        row("Top-2 accuracy", percent, lambda run: run.evaluation["top2"], points),
        row("Loss", "{:.4f}".format, lambda run: run.evaluation["loss"], partial(signed, digits=4)),
        row("Generalisation gap, points", points, lambda run: run.metrics["generalization_gap"], points),
        row("Calibration error", percent, lambda run: run.evaluation["ece"], points),
        row(
            "Calibrating temperature",
            lambda value: f"{value:.2f}" if value else "none",
            lambda run: run.evaluation["temperature"],
        ),
        row("Weight decay", scientific, lambda run: run.metrics["weight_decay"]),
        row("Parameters", "{:,}".format, lambda run: run.metrics["parameters"]),
        row("Training epochs", str, lambda run: run.metrics["epochs"]),
        row("Training time", duration, lambda run: run.timing["train_seconds"]),
    ]
    return pd.DataFrame(rows)


def run_table(runs: list[Run]) -> pd.DataFrame:
    """The figures for the terminal."""
    rows = [
        {
            "run": run.name,
            "model": run.model,
            "weight decay": scientific(run.metrics["weight_decay"]),
            "accuracy": percent(run.evaluation["accuracy"]),
            "95% interval": percent_range(run.evaluation["interval"]),
            "last epoch": percent(run.metrics["final_test_accuracy"]),
            "time": duration(run.timing["train_seconds"]),
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


def study_tables(study: pd.DataFrame, runs: list[Run], pairs: list[Pair]) -> dict:
    """Mean and spread of each run over the seeds, and each comparison's difference."""
    accuracy, last = study["accuracy"], study["last_accuracy"]
    by_run = [
        {
            "Run": run.name,
            "Mean": percent(accuracy[run.name].mean()),
            "Standard deviation": f"{100 * accuracy[run.name].std():.2f}",
            "Lowest": percent(accuracy[run.name].min()),
            "Highest": percent(accuracy[run.name].max()),
            "Mean, last epoch": percent(last[run.name].mean()),
        }
        for run in runs
    ]
    by_pair = [
        {
            "Difference, points": f"{pair.first.name} less {pair.second.name}",
            "Mean": points(over_seeds.difference),
            "95% interval": points_range(over_seeds.interval),
            "p": f"{over_seeds.p:.2g}",
        }
        for pair, over_seeds in ((pair, compare_seeds(pair, study)) for pair in pairs)
    ]
    return {"seeds": list(study.index), "runs": pd.DataFrame(by_run), "pairs": pd.DataFrame(by_pair)}


def confusion(run: Run, classes: list[str]) -> pd.DataFrame:
    """Number of test images of each class (rows) that the run takes for each class (columns)."""
    counts = pd.crosstab(run.predictions.actual, run.predictions.predicted)
    return counts.reindex(index=classes, columns=classes, fill_value=0)


def per_class_table(runs: list[Run]) -> pd.DataFrame:
    """Precision, recall and F1 of each class in percent, a column a figure and run."""
    columns = {
        f"{run.name}, {figure}": [percent(value) for value in run.per_class[figure]]
        for run in runs
        for figure in ("precision", "recall", "f1")
    }
    return pd.DataFrame({"Class": runs[0].per_class["class"].tolist(), **columns})
