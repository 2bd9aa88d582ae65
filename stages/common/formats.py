"""The files that the stages pass on to each other: where they are, and a class for the content of each.

A writer fills the class in, and readers check the file against it. Accuracies are fractions, losses mean
cross-entropies in nats.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PlainSerializer

from stages.common.params import Name, Section

DATA, MODELS, REPORT = Path("data"), Path("models"), Path("report")
TRAIN_METRICS, TIMING = Path("metrics/train"), Path("metrics/timing")
EVALUATION, COMPARISONS = Path("metrics/evaluation.json"), Path("metrics/compare")
HISTORY, PREDICTIONS = Path("plots/history"), Path("plots/predictions")
CURVES, PER_CLASS, CALIBRATION = Path("plots/curves.csv"), Path("plots/per_class.csv"), Path("plots/calibration.csv")
SEEDS = Path("plots/seeds.csv")

Places = PlainSerializer(lambda value: round(value, 6))  # what a person can use, and no noise of the last digits
Fraction = Annotated[float, Field(ge=0, le=1), Places]
Difference = Annotated[float, Field(ge=-1, le=1), Places]
Loss = Annotated[float, Field(ge=0), Places]
Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1), PlainSerializer(lambda value: float(f"{value:.3g}"))]  # a p value
Text = Annotated[str, Field(max_length=1000)]


class Metrics(Section):
    """metrics/train/RUN.json: a training in the few numbers that `dvc metrics` compares."""

    accuracy: Fraction  # on the test set, of the weights kept
    loss: Loss
    last_accuracy: Fraction  # on the test set, after the last epoch
    gap: Difference  # training minus test accuracy, of the last epoch
    best_epoch: Annotated[int, Field(ge=1)]


class Timing(Section):
    """metrics/timing/RUN.json: all that varies from run to run, and nothing else."""

    train_seconds: Annotated[float, Field(ge=0)]  # testing after each epoch and compilation included
    images_per_second: Annotated[float, Field(ge=0)]  # of the training epochs, testing left out
    device: Text
    precision: Text
    compiled: bool
    torch: Text
    python: Text


class Comparison(Section):
    """metrics/compare/NAME.json: is the first run's model better than the second's?"""

    difference: Difference  # test accuracy of the first minus that of the second
    p: Probability  # McNemar's exact test


class ComparedRuns(Comparison):
    runs: Annotated[list[Name], Field(min_length=2, max_length=2)]
    interval: Annotated[list[Difference], Field(min_length=2, max_length=2)]  # 95 %, of the difference
    only_right: Annotated[list[Count], Field(min_length=2, max_length=2)]  # images that one run alone has right


class EvaluatedRun(Section):
    """A model on the whole test set in fp32."""

    model: Text  # ResNet-18
    parameters: Count
    epochs: Annotated[int, Field(ge=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    seed: int
    accuracy: Fraction
    interval: Annotated[list[Fraction], Field(min_length=2, max_length=2)]  # 95 %, Wilson
    top2: Fraction  # share of the images whose class is among the two likeliest
    loss: Loss
    ece: Fraction  # expected calibration error over 15 bins of confidence
    temperature: Annotated[float, Field(gt=0), Places] | None  # see `calibrating_temperature`


class Evaluation(Section):
    """metrics/evaluation.json."""

    runs: dict[Name, EvaluatedRun]
    comparisons: dict[Name, ComparedRuns]


class Epoch(Section):
    """A row of plots/history/RUN.csv. Training figures are means over the augmented batches of the epoch."""

    epoch: Annotated[int, Field(ge=1)]
    train_loss: Annotated[float, Field(ge=0)]
    train_accuracy: Annotated[float, Field(ge=0, le=1)]
    test_loss: Annotated[float, Field(ge=0)]
    test_accuracy: Annotated[float, Field(ge=0, le=1)]
    generalization_gap: Annotated[float, Field(ge=-1, le=1)]  # train_accuracy - test_accuracy
    learning_rate: Annotated[float, Field(ge=0)]


class OfRun(Section):
    run: Name


class Curve(Epoch, OfRun):
    """A row of plots/curves.csv: all histories in one table."""


class Prediction(Section):
    """A row of plots/predictions/RUN.csv: a test image."""

    index: Count
    actual: Text
    predicted: Text
    confidence: Fraction


class ClassScores(OfRun):
    """A row of plots/per_class.csv: a run and a class."""

    class_: Annotated[Text, Field(alias="class")]
    images: Count  # in the test set
    precision: Fraction
    recall: Fraction
    f1: Fraction


class CalibrationBin(OfRun):
    """A row of plots/calibration.csv: a run and a bin of confidence that holds images."""

    lower: Fraction  # limits of the bin
    upper: Fraction
    images: Annotated[int, Field(ge=1)]
    confidence: Fraction  # mean
    accuracy: Fraction


class SeedResult(Section):
    """A row of plots/seeds.csv: a finished experiment and a run."""

    seed: int
    run: Name
    accuracy: Fraction  # of the weights kept
    last_accuracy: Fraction  # after the last epoch


def of_run(folder: Path, run: str) -> Path:
    """The file of a run in one of the folders above."""
    suffix = {MODELS: "safetensors", TRAIN_METRICS: "json", TIMING: "json"}.get(folder, "csv")
    return folder / f"{run}.{suffix}"
