"""The content of the report in sentences: questions, verdicts, how to read them, and what to do next."""

from typing import Any

from stages.evaluation.metrics import Comparison
from stages.evaluation.significance import MOST_SEEDS, SIGNIFICANT, Difference, seeds_needed
from stages.reporting.results import Pair, Results
from stages.reporting.wording import capitalised, p_value, percent, points, points_range

# The full experiment
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
FULL_TRAIN, FULL_TEST, FULL_CHANNELS, FULL_BLOCKS = 50_000, 10_000, 64, 8
FULL_EPOCHS = {"cnn": 50, "resnet": 100}
KNOWN = 0.95  # what ResNet-18 is known to reach on CIFAR-10, about

UNBALANCED = 1.5  # times the mean number of images a class; above it, the report mentions the commonest class
OVERFIT = 0.05  # generalisation gap


def is_cifar10(results: Results) -> bool:
    return set(results.info.classes) == CIFAR10


def caveats(results: Results) -> list[str]:
    """Say what makes this less than the full experiment; of few images, how little they can show."""
    counts, said = results.info.counts, []
    train = counts.train + counts.validation
    if train < FULL_TRAIN or counts.test < FULL_TEST:
        half = max(high - low for low, high in (run.tested.interval for run in results.runs)) / 2
        said += [
            f"few images: {train:,} to train on and {counts.test:,} to test with (CIFAR-10: {FULL_TRAIN:,} and "
            f"{FULL_TEST:,}), so an accuracy is known to ±{100 * half:.1f} points"
        ]
    short, small = [], []
    for run in results.runs:
        recipe: dict[str, Any] = run.tested.recipe
        title, epochs = run.tested.title, len(run.history)
        full, settings = FULL_EPOCHS.get(recipe["model"], 0), recipe["settings"]
        if epochs < full:
            short.append(f"{title} {epochs} of {full} epochs")
        resnet = recipe["model"] == "resnet"
        if resnet and (settings["base_channels"] < FULL_CHANNELS or sum(settings["blocks"]) < FULL_BLOCKS):
            small.append(f"{title} in place of ResNet-18")
    lacking = {"short training": dict.fromkeys(short), "smaller ResNets": dict.fromkeys(small)}
    return said + [f"{what}: {', '.join(each)}" for what, each in lacking.items() if each]


def answer(pair: Pair, margin: float, questions: int) -> dict:
    """Answer a question under `compare`: question, verdict, and the facts that it rests on, the weightiest first.

    Args:
        margin: differences within it count as equal, a fraction.
        questions: number of pairs, for which p is adjusted.
    """
    (one, other), images = pair.labels, f"{len(pair.first.predictions):,} test images"
    accuracies = " against ".join(percent(run.tested.accuracy) for run in (pair.first, pair.second))
    only_one, only_other = pair.comparison.only_right
    facts = [
        f"{accuracies} of {images}: {_difference(pair.comparison, pair.comparison.adjusted_p, questions)}.",
        f"Right by {one} alone: {only_one:,}, by {other} alone: {only_other:,}.",
    ]
    if compared := pair.recipes:
        shares = ", ".join(f"{part} {share:.0%}" for part, share in compared.shares.items())
        difference = _difference(compared, pair.p, questions)
        over = f"Over {compared.seeds} seeds, for other seeds and other images too: {difference}."
        facts = [f"{over} Shares of its variance: {shares}.", f"These two models: {facts[0]}", facts[1]]
    return {"question": f"Is {one} better than {other}?", "verdict": verdict(pair, margin), "facts": facts}


def verdict(pair: Pair, margin: float) -> str:
    """Say which one is better: which recipe if there are enough seeds for that, else which of these two models."""
    one, other = pair.labels
    said = {
        "better": f"{one} is better than {other}",
        "worse": f"{other} is better than {one}",
        "equal": f"{one} and {other} are equal within {100 * margin:g} points",
        "undecided": f"undecided between {one} and {other}",
    }[pair.verdict]
    return capitalised(said) if pair.recipes else f"These two models: {said}"


def _difference(compared: Difference | Comparison, adjusted_p: float, questions: int) -> str:
    """Write a difference with its uncertainty."""
    adjusted = f" ({p_value(adjusted_p)} adjusted for {questions} questions)" if questions > 1 else ""
    limits = points_range(compared.interval)
    return f"{points(compared.difference)} points, 95% interval {limits}, {p_value(compared.p)}{adjusted}"


def notes(results: Results) -> list[str]:
    """Say how to read the verdicts. A command or a file stands in backticks; no name from outside does."""
    said = [
        "p is the chance of a difference at least as large if there were none. A verdict names the better one where p, "
        f"adjusted for all questions together (Holm 1979), is below {SIGNIFICANT}; equal: a difference of more than "
        f"{100 * results.parameters['study.margin']:g} points is ruled out; undecided: neither."
    ]
    if is_cifar10(results):
        said.append(f"ResNet-18, trained in full on CIFAR-10, is known to reach about {KNOWN:.0%}: the dotted line.")
    if results.chosen_on_test:
        said.append("The best epoch was chosen on the test set, so these accuracies are slightly too high.")
    if results.held_out == "validation":
        said.append("Epochs were judged on validation images; the test images were looked at once, at the end.")
    images = results.runs[0].per_class.images
    if images.max() > UNBALANCED * images.mean():
        said.append(
            f"The classes are unbalanced: whoever always answers with the commonest one is right for "
            f"{percent(images.max() / images.sum())} of the test images."
        )
    if not any(pair.recipes for pair in results.pairs):
        said.append("Each run is one training: a verdict holds for these models. `make seeds` trains others.")
    table, planned = results.seed_accuracies, results.parameters["study.seeds"]
    if 0 < len(table) != planned:
        said.append(
            f"{planned} seeds were planned and {len(table)} are here: whoever stops or goes on by the results finds "
            "differences that are none."
        )
    for seed, row in table[table.isna().any(axis=1)].iterrows():
        said.append(f"Seed {seed} lacks {', '.join(row.index[row.isna()])}.")
    if results.foreign:
        said.append("`plots/seeds.csv` also holds trainings of other recipes or data, which are left out.")
    return said


def next_step(results: Results) -> str:
    """Say in one sentence what would tell most next, by the numbers."""
    margin, best = results.parameters["study.margin"], results.best
    for pair in (pair for pair in results.pairs if pair.verdict == "undecided"):
        low, high = (pair.recipes or pair.comparison).interval
        if not pair.recipes and high - low < 20 * margin:
            return f"Next: `make seeds`, for {results.parameters['study.seeds']} seeds of each recipe."
        if not pair.recipes or pair.recipes.shares["images"] > 0.5:
            return f"Next: more test images; with these, {100 * (high - low):.1f} points stay open."
        count = seeds_needed(pair.recipes, margin)[0]
        if count < MOST_SEEDS:
            return f"Next: more seeds; about {count:,} would show a difference of {100 * margin:g} points."
    epoch, epochs, gap = best.tested.best_epoch, len(best.history), best.tested.gap
    if gap > OVERFIT:
        return f"Next: stronger augmentation or weight decay, since {best.label} has a gap of {100 * gap:.1f} points."
    if epoch > 0.9 * epochs:
        return f"Next: longer training, since {best.label} was best in epoch {epoch} of {epochs}."
    return f"Next: a wider or deeper model, since {best.label} neither overfits nor was best at its end."
