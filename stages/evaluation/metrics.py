"""Measures of a classifier: functions of (true, predicted), a run on the test images, and metrics/evaluation.json.

Calibration is that of Guo et al. 2017, *On calibration of modern neural networks*. Shares and scores lie in [0, 1].
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, JsonValue
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from stages.common.files import Record
from stages.common.params import Name
from stages.evaluation.significance import accuracy_interval, compare_on_images, holm, only_right

EDGES = np.linspace(0, 1, 16)  # of the bins of confidence
HOTTEST = 50  # limit of a calibrating temperature; the coldest is 1/50
MOST_SUSPECTS = 50


class TestedRun(Record):
    """What the test images and the history say of a run. Accuracies are fractions."""

    __test__ = False  # pytest takes it for a test otherwise

    recipe: dict[str, JsonValue]
    title: str  # of the network: "ResNet-18, 16 channels"
    parameters: int
    accuracy: float
    interval: tuple[float, float]  # of the accuracy, 95 %
    last_accuracy: float  # after the last epoch, in the training's precision, on the images that chose the best epoch
    epoch: int  # whose weights are kept
    best_epoch: int
    gap: float  # training minus held-out accuracy, after the last epoch
    top2: float  # share of the images whose class is among the two likeliest
    loss: float  # nats
    ece: float
    ece_expected: float  # of a perfectly calibrated model with the same confidences
    temperature: float | None


class Comparison(Record):
    """Two runs on the same images; differences are fractions, first minus second."""

    runs: Annotated[list[Name], Field(min_length=2, max_length=2)]
    difference: float
    interval: tuple[float, float]
    p: float
    adjusted_p: float  # for the number of pairs
    only_right: Annotated[list[int], Field(min_length=2, max_length=2)]  # by the first alone, by the second alone


class Evaluation(Record):
    """metrics/evaluation.json."""

    data: str  # sha256 of the data set
    parameters: dict[str, Any]  # common to the runs, by dotted names, as the models have them
    runs: dict[Name, TestedRun]
    comparisons: dict[Name, Comparison]
    files: dict[str, str]  # the tables written with this file: their sha256, by path


def confusion(true: pd.Series, predicted: pd.Series, classes: list[str]) -> pd.DataFrame:
    """Count the images of each class (rows) taken for each class (columns), from N names each, out of `classes`."""
    return pd.DataFrame(confusion_matrix(true, predicted, labels=classes), index=classes, columns=classes)


def calibration(correct: np.ndarray, confidence: np.ndarray) -> pd.DataFrame:
    """Tabulate accuracy (of bool N) against confidence (float N, in (0, 1]), as in figure 1 of Guo et al.

    A row for each of 15 equal bins, (lower, upper], that holds images: lower, upper, images, mean confidence, accuracy.
    """
    bins = np.digitize(confidence, EDGES[1:-1], right=True)  # int N, from 0
    table = pd.DataFrame({"confidence": confidence, "accuracy": correct}).groupby(bins).mean()
    bounds = {"lower": EDGES[table.index], "upper": EDGES[table.index + 1], "images": np.bincount(bins)[table.index]}
    return pd.DataFrame({**bounds, **table.reset_index(drop=True)})


def calibration_error(bins: pd.DataFrame) -> float:
    """Mean distance of confidence from accuracy over all images; 0 is best (Guo et al., equation 3)."""
    return float(np.average((bins.confidence - bins.accuracy).abs(), weights=bins.images))


def expected_error(confidence: np.ndarray) -> float:
    """Calibration error that chance alone gives a model whose every confidence (float N) is its chance to be right.

    Bröcker and Smith (2007, *Increasing the reliability of reliability diagrams*) draw such models. This is the mean:
    in a bin the number of right images is a sum of independent draws, whose distributions multiply as polynomials.
    """
    bins, distance = np.digitize(confidence, EDGES[1:-1], right=True), 0.0
    for held in np.unique(bins):
        chances = confidence[bins == held]
        parts = [np.array([1 - chance, chance]) for chance in chances]  # of 0 and 1 right images
        while len(parts) > 1:  # pairs, so that the lengths stay alike
            products = [np.convolve(one, other) for one, other in zip(parts[::2], parts[1::2], strict=False)]
            parts = products + parts[2 * len(products) :]
        distance += float(parts[0] @ np.abs(np.arange(len(chances) + 1) - chances.sum()))
    return distance / len(confidence)


def best_temperature(true: np.ndarray, logits: np.ndarray) -> float | None:
    """Find by what to divide logits (N×classes; or logarithms of probabilities) for the lowest cross-entropy.

    Above 1 for a model that is too sure of itself (Guo et al., section 4.2). None unless it lies between 1/50 and 50;
    so if every image is right, where colder is always better.
    """
    margins = logits - np.take_along_axis(logits, true[:, None], 1)  # N×classes

    def slope(coldness: float) -> float:  # of the cross-entropy, which is convex in 1/temperature
        return float((softmax(coldness * margins, axis=1) * margins).sum(1).mean())

    return 1 / brentq(slope, 1 / HOTTEST, HOTTEST) if slope(1 / HOTTEST) < 0 < slope(HOTTEST) else None


@dataclass(eq=False)
class TestResult:
    """A run on N test images."""

    __test__ = False

    run: str
    true: np.ndarray  # int64 N, indices into `classes`
    log_probabilities: np.ndarray  # float64 N×classes, natural logarithms
    classes: list[str]
    names: np.ndarray  # of the images' files, N texts

    def __post_init__(self) -> None:
        self.predicted = self.log_probabilities.argmax(1)  # int64 N
        self.confidence = np.exp(self.log_probabilities.max(1))  # in what is predicted, float64 N
        self.correct = self.predicted == self.true  # bool N

    def summary(self, recipe: dict[str, Any], title: str, parameters: int, history: pd.DataFrame) -> TestedRun:
        """Measure the run: its recipe as JSON has it, its network's parameters, a row of history for each epoch."""
        held_out = history["validation_accuracy" if "validation_accuracy" in history else "test_accuracy"]
        best, last = int(history.epoch[held_out.argmax()]), int(history.epoch.iloc[-1])
        two_likeliest = self.log_probabilities.argsort(1, kind="stable")[:, -2:]
        return TestedRun(
            recipe=recipe,
            title=title,
            parameters=parameters,
            accuracy=float(self.correct.mean()),
            interval=accuracy_interval(self.correct),
            last_accuracy=float(held_out.iloc[-1]),
            epoch=best if recipe["train"]["keep"] == "best" else last,
            best_epoch=best,
            gap=float(history.generalization_gap.iloc[-1]),
            top2=float((two_likeliest == self.true[:, None]).any(1).mean()),
            loss=float(-self.log_probabilities[np.arange(len(self.true)), self.true].mean()),
            ece=calibration_error(calibration(self.correct, self.confidence)),
            ece_expected=expected_error(self.confidence),
            temperature=best_temperature(self.true, self.log_probabilities),
        )

    def predictions(self) -> pd.DataFrame:
        """A row for each image: index, image, actual, predicted, confidence."""
        classes = np.array(self.classes, dtype=object)
        columns = {"image": self.names, "actual": classes[self.true], "predicted": classes[self.predicted]}
        return pd.DataFrame({"index": range(len(self.true)), **columns, "confidence": self.confidence})

    def by_class(self) -> pd.DataFrame:
        """A row for each class against all others: run, class, images, precision, recall, f1 (0 where undefined)."""
        labels = range(len(self.classes))
        scores = precision_recall_fscore_support(self.true, self.predicted, labels=labels, zero_division=0)
        columns = dict(zip(("precision", "recall", "f1"), scores, strict=False))
        images = np.bincount(self.true, minlength=len(labels))
        return pd.DataFrame({"run": self.run, "class": self.classes, "images": images, **columns})

    def by_confidence(self) -> pd.DataFrame:
        """The rows of `calibration`, after the run's name."""
        bins = calibration(self.correct, self.confidence)
        return bins.assign(run=self.run)[["run", *bins]]


def compare(results: dict[str, TestResult], pairs: dict[str, list[str]]) -> dict[str, Comparison]:
    """Compare pairs (by name, the first and the second run) of results (by run) on the same images."""
    answers = [(results[first].correct, results[second].correct) for first, second in pairs.values()]
    tests = [compare_on_images(*pair) for pair in answers]
    adjusted = holm([test.p for test in tests])
    return {
        name: Comparison(runs=runs, adjusted_p=p, only_right=only_right(*pair), **vars(test))
        for (name, runs), pair, test, p in zip(pairs.items(), answers, tests, adjusted, strict=True)
    }


def suspects(results: list[TestResult]) -> pd.DataFrame:
    """List the images most likely labelled wrong, at most 50: all runs take them for one class that is not the label.

    Columns image, label, predicted and confidence, the lowest over the runs; the highest of these first.
    """
    tables = [result.predictions() for result in results]
    table = tables[0].rename(columns={"actual": "label"}).drop(columns="index")
    table["confidence"] = np.min([other.confidence for other in tables], axis=0)
    agreed = np.all([other.predicted == table.predicted for other in tables], axis=0)
    found = table[agreed & (table.predicted != table.label)]
    return found.sort_values("confidence", ascending=False, kind="stable").head(MOST_SUSPECTS).reset_index(drop=True)
