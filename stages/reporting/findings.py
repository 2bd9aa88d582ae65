"""The content of the report in sentences: questions, verdicts, how to read them, and what to do next."""

from typing import Any

from stages.evaluation.metrics import Comparison
from stages.evaluation.significance import ENOUGH_SEEDS, SIGNIFICANT, Difference, seeds_needed
from stages.reporting.results import Pair, Results
from stages.reporting.wording import p_value, percent, points, points_range

# The full experiment
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
FULL_TRAIN, FULL_TEST = 50_000, 10_000
FULL = {"cnn": ("Simple CNN", 50), "resnet": ("ResNet-18", 100)}  # titles and epochs
KNOWN = 0.95  # what ResNet-18 is known to reach on CIFAR-10, about


def is_cifar10(results: Results) -> bool:
    return set(results.info.classes) == CIFAR10


def caveats(results: Results) -> str:
    """Say what makes this less than the full experiment, if anything; of few images, how little they can show."""
    counts, said = results.info.counts, []
    train = counts.train + counts.validation
    if train < FULL_TRAIN or counts.test < FULL_TEST:
        half = max(high - low for low, high in (run.tested.interval for run in results.runs)) / 2
        said += [
            f"Few images: {train:,} to train on and {counts.test:,} to test with (CIFAR-10: {FULL_TRAIN:,} and "
            f"{FULL_TEST:,}), so an accuracy is known to ±{100 * half:.1f} points."
        ]
    for run in results.runs if results.info.source != "images" or is_cifar10(results) else []:
        title, epochs = FULL.get(str(run.tested.recipe["model"]), (run.tested.title, 0))
        if run.tested.title != title:
            said.append(f"{run.tested.title} in place of {title}.")
        if len(run.history) < epochs:
            said.append(f"{run.tested.title}: {len(run.history)} of {epochs} epochs.")
    return " ".join(dict.fromkeys(said))


def answer(pair: Pair, margin: float, questions: int) -> dict:
    """Answer a question under `compare`: question, verdict, and the facts that it rests on, the weightiest first.

    Enough seeds judge the recipes, else these two models are judged.

    Args:
        margin: differences within it count as equal, a fraction.
        questions: number of pairs, for which p is adjusted.
    """
    (one, other), images = pair.labels, f"{len(pair.first.predictions):,} test images"
    accuracies = " against ".join(percent(run.tested.accuracy) for run in (pair.first, pair.second))
    only_one, only_other = pair.comparison.only_right
    adjusted_p = pair.comparison.adjusted_p if pair.recipes else pair.p
    verdict = {
        "better": f"{one} is better than {other}",
        "worse": f"{other} is better than {one}",
        "equal": f"{one} and {other} are equal within {100 * margin:g} points",
        "undecided": f"undecided between {one} and {other}",
    }[pair.verdict]
    facts = [
        f"{accuracies} of {images}: {_difference(pair.comparison, adjusted_p, questions)}.",
        f"Right by {one} alone: {only_one:,}, by {other} alone: {only_other:,}.",
    ]
    if compared := pair.recipes:
        shares = ", ".join(f"{part} {share:.0%}" for part, share in compared.shares.items())
        over = f"Over {compared.seeds} seeds, for other seeds and other images too"
        over += f": {_difference(compared, pair.p, questions)}. Shares of its variance: {shares}."
        facts = [over, f"These two models: {facts[0]}", facts[1]]
    verdict = verdict[0].upper() + verdict[1:] if pair.recipes else f"These two models: {verdict}"
    return {"question": f"Is {one} better than {other}?", "verdict": verdict, "facts": facts}


def _difference(compared: Difference | Comparison, adjusted_p: float, questions: int) -> str:
    """Write a difference with its uncertainty."""
    adjusted = f" ({p_value(adjusted_p)} adjusted for {questions} questions)" if questions > 1 else ""
    limits = points_range(compared.interval)
    return f"{points(compared.difference)} points, 95% interval {limits}, {p_value(compared.p)}{adjusted}"


def notes(results: Results) -> list[str]:
    """Say how to read the verdicts."""
    said = [
        "p is the chance of a difference at least as large if there were none. A verdict names the better one where p, "
        f"adjusted for all questions together (Holm 1979), is below {SIGNIFICANT}; equal: a difference of more than "
        f"{100 * results.parameters['study.margin']:g} points is ruled out; undecided: neither."
    ]
    if is_cifar10(results):
        said.append(f"ResNet-18, trained in full on CIFAR-10, is known to reach about {KNOWN:.0%}: the dotted line.")
    recipe: dict[str, Any] = results.runs[0].tested.recipe
    if results.held_out == "test" and recipe["train"]["keep"] == "best":
        said.append("The best epoch was chosen on the test set, so these accuracies are slightly too high.")
    seeds, planned = len(results.study.dropna()), results.parameters["study.seeds"]
    if not seeds:
        said.append("Each run is one training: a verdict holds for these models. “make seeds” trains others.")
    elif seeds != planned:
        said.append(
            f"{planned} seeds were planned and {seeds} are complete: whoever stops or goes on by the results finds "
            "differences that are none."
        )
    for seed, row in results.study[results.study.isna().any(axis=1)].iterrows():
        said.append(f"Seed {seed} lacks {', '.join(row.index[row.isna()])}.")
    if results.foreign:
        said.append("plots/seeds.csv also holds trainings of other recipes or data, which are left out.")
    return said


def next_step(results: Results) -> str:
    """Say in one sentence what would tell most next, by the numbers."""
    margin, best = results.parameters["study.margin"], results.best
    for pair in (pair for pair in results.pairs if pair.verdict == "undecided"):
        compared = pair.recipes
        low, high = (compared or pair.comparison).interval
        if compared.shares["images"] > 0.5 if compared else high - low > 20 * margin:
            return f"Next: more test images; these leave {100 * (high - low):.1f} points open."
        count = seeds_needed(compared, margin)[0] if compared else max(results.parameters["study.seeds"], ENOUGH_SEEDS)
        if (compared.seeds if compared else 0) < count <= 100:
            return f"Next: train {count:,} seeds of each recipe with “make seeds” (study.seeds in params.yaml)."
    change = "longer training" if best.tested.best_epoch > 0.9 * len(best.history) else "another width"
    return (
        f"Next: {change}; {best.label} was best in epoch {best.tested.best_epoch} of {len(best.history)}, and its gap "
        f"is {100 * best.tested.gap:.1f} points."
    )
