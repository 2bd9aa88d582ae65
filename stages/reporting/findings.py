"""The content of the report in sentences: questions, verdicts, and how to read them."""

import numpy as np
import pandas as pd

from stages.common.dataset import DatasetInfo
from stages.common.params import Params
from stages.evaluation.significance import ENOUGH_SEEDS, SIGNIFICANT, Comparison, compare_over_seeds
from stages.reporting.results import Pair, Results, Run
from stages.reporting.wording import p_value, percent, points, points_range, verdict

# The full experiment
FULL_IMAGES = {"train": 50_000, "test": 10_000}
FULL_EPOCHS = {"cnn": 50, "resnet": 100}
FULL_CHANNELS, FULL_BLOCKS = 64, [2, 2, 2, 2]

UNBALANCED = 1.5  # times the mean number of images a class; above it, the report mentions the commonest class


def caveats(info: DatasetInfo, params: Params, runs: list[Run]) -> list[str]:
    """Differences that make this less than the full experiment."""
    found, counts = [], info.counts
    if counts.train < FULL_IMAGES["train"] or counts.test < FULL_IMAGES["test"]:
        found.append(
            f"few images: {counts.train:,} to train on and {counts.test:,} to test with; CIFAR-10 has "
            f"{FULL_IMAGES['train']:,} and {FULL_IMAGES['test']:,}"
        )
    models = {run.tested.model for run in runs}
    sections = {name: getattr(params, name) for name in FULL_EPOCHS if getattr(params, name).title in models}
    if lacking := [name for name, section in sections.items() if section.epochs < FULL_EPOCHS[name]]:
        epochs = [f"{sections[name].title} {sections[name].epochs} of {FULL_EPOCHS[name]} epochs" for name in lacking]
        found.append(f"short training: {', '.join(epochs)}")
    small = params.resnet.base_channels < FULL_CHANNELS or sum(params.resnet.blocks) < sum(FULL_BLOCKS)
    if "resnet" in sections and small:
        found.append(f"smaller ResNets: {params.resnet.title} in place of ResNet-18")
    return found


def answer(pair: Pair, study: pd.DataFrame | None) -> dict:
    """A question under `compare`: question, verdict, and the facts that it rests on, the weightiest first."""
    subject, (one, other) = f"{pair.subject} " if pair.subject else "", pair.names
    found = {"question": f"Is {subject}{one} better than {other}?"}
    if pair.same_recipe:
        return found | {"verdict": f"{one} and {other} have the same recipe: nothing to compare", "facts": []}
    images, only = f"{len(pair.first.predictions):,} test images", pair.only_right
    accuracies = " against ".join(percent(run.tested.accuracy) for run in (pair.first, pair.second))
    decisive, sample = pair.comparison, images
    facts = [
        f"{accuracies} of {images}: {_difference(decisive)} (paired bootstrap), {p_value(decisive.p)} "
        "(McNemar's exact test).",
        f"Only {subject}{one} right: {only[0]:,}, only {other}: {only[1]:,}.",
    ]
    if study is not None and len(study) >= ENOUGH_SEEDS:
        decisive, sample = compare_over_seeds(*seed_accuracies(pair, study)), f"{len(study)} seeds"
        average = f"Over {sample}, on average: {_difference(decisive)}, {p_value(decisive.p)} (paired t test)."
        facts = [average, *facts]
    return found | {"verdict": verdict(pair.subject, pair.names, decisive, sample), "facts": facts}


def _difference(comparison: Comparison) -> str:
    return f"{points(comparison.difference)} points, 95% interval {points_range(comparison.interval)}"


def notes(params: Params, results: Results) -> list[str]:
    """Guidance for reading the verdicts. A command or a file stands in backticks; no name from outside does."""
    sentences = [
        "p is the chance of a difference at least as large if there were none. A verdict names the better one where p "
        f"is below {SIGNIFICANT}."
    ]
    if params.train.keep == "best":
        sentences.append(
            "The best epoch was chosen on the test set, so these accuracies are slightly too high; the tables also "
            "give the last epoch."
        )
    if results.study is None:
        sentences.append(
            "Each run is one training, so the verdicts hold for these models; `make seeds` shows what other seeds give."
        )
    elif len(results.study) < ENOUGH_SEEDS:
        sentences.append(f"{len(results.study)} seeds are too few for a verdict over seeds.")
    if results.foreign_study:
        sentences.append("`plots/seeds.csv` holds a study of another experiment, which is not shown.")
    images = results.runs[0].per_class.images
    if images.max() > UNBALANCED * images.mean():
        sentences.append(
            f"The classes are unbalanced: whoever always answers with the commonest one is right for "
            f"{percent(images.max() / images.sum())} of the test images."
        )
    return sentences


def seed_accuracies(pair: Pair, study: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """The accuracies of both runs over the seeds, and the number of test images, as `compare_over_seeds` takes them."""
    first, second = (study["accuracy"][run.name].to_numpy() for run in (pair.first, pair.second))
    return first, second, len(pair.first.predictions)
