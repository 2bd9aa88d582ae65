"""Measures of a classifier: functions of (true, predicted), a run on the test images, and metrics/evaluation.json."""

from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, JsonValue
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from stages.common.files import Record
from stages.common.params import Name
from stages.evaluation.calibration import best_temperature, calibration, calibration_error, expected_error
from stages.evaluation.significance import accuracy_interval, compare_on_images, holm, only_right

MOST_SUSPECTS = 50

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class TestedRun(Record):
    """What the test images and the history say of a run. Accuracies are fractions."""

    __test__ = False  # pytest takes it for a test otherwise

    recipe: dict[str, JsonValue]
    title: str  # of the network: "ResNet-18, 16 channels"
    parameters: int
    accuracy: float
    interval: Interval  # of the accuracy, 95 %
    last_accuracy: float  # after the last epoch, in the training's precision, on the images that chose the best epoch
    epoch: int  # whose weights are kept
    best_epoch: int
    gap: float  # training minus held-out accuracy, after the last epoch
    top2: float
    loss: float  # nats
    ece: float
    ece_expected: float  # of a perfectly calibrated model with the same confidences
    temperature: float | None


class Comparison(Record):
    """Two runs on the same images; differences are fractions, first minus second."""

    runs: Annotated[list[Name], Field(min_length=2, max_length=2)]
    difference: float
    interval: Interval
    p: float
    adjusted_p: float  # for the number of pairs
    only_right: Annotated[list[int], Field(min_length=2, max_length=2)]  # by the first alone, by the second alone


class Evaluation(Record):
    """metrics/evaluation.json."""

    data: str  # sha256 of the data set
    parameters: dict[str, JsonValue]  # common to the runs, by dotted names, as the models have them
    runs: dict[Name, TestedRun]
    comparisons: dict[Name, Comparison]
    files: dict[str, str]  # the tables written with this file: their sha256, by path


def top_2_accuracy(true: np.ndarray, scores: np.ndarray) -> float:
    """Share of the images whose class is among the two likeliest, in [0, 1]; 1 is best.

    Args:
        true: int64 N.
        scores: float N×classes, higher for what is likelier.
    """
    if scores.shape[1] == 2:  # for which scikit-learn wants other arguments
        return 1.0
    return float(top_k_accuracy_score(true, scores, k=2, labels=range(scores.shape[1])))


def confusion(true: pd.Series, predicted: pd.Series, classes: list[str]) -> pd.DataFrame:
    """Count the images of each class (rows) that are taken for each class (columns).

    Args:
        true, predicted: N names each, out of `classes`.
    """
    return pd.DataFrame(confusion_matrix(true, predicted, labels=classes), index=classes, columns=classes)


def per_class(true: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Score each class against all others.

    Args:
        true, predicted: int64 N each, indices into `classes`.

    Returns:
        A row for each class, columns `class`, `images` (of this class), `precision`, `recall`, `f1`, in [0, 1]; 0 for a
        precision or recall that is not defined, because the class was never predicted or has no image.
    """
    precision, recall, f1, images = precision_recall_fscore_support(
        true, predicted, labels=range(len(classes)), zero_division=0
    )
    images = images.astype(int)  # scikit-learn counts in floats if no image is right
    return pd.DataFrame({"class": classes, "images": images, "precision": precision, "recall": recall, "f1": f1})


class TestResult:
    """A run on N test images.

    Args:
        true: int64 N, indices into `classes`.
        log_probabilities: float64 N×classes, natural logarithms.
        names: of the images' files, N texts.

    Attributes:
        predicted: the likeliest class of each image, int64 N.
        confidence: its probability, float64 N.
        correct: true where it is the label, bool N.
    """

    __test__ = False

    def __init__(
        self, run: str, true: np.ndarray, log_probabilities: np.ndarray, classes: list[str], names: np.ndarray
    ):
        self.run, self.true, self.classes, self.names = run, true, classes, names
        self.log_probabilities = log_probabilities
        self.predicted, self.confidence = log_probabilities.argmax(1), np.exp(log_probabilities.max(1))
        self.correct = self.predicted == true

    def summary(self, recipe: dict[str, Any], title: str, parameters: int, history: pd.DataFrame) -> TestedRun:
        """Measure the run for metrics/evaluation.json.

        Args:
            recipe: as a JSON object; its train.keep says which epoch's weights these are.
            parameters: of the network.
            history: a row for each epoch, as in plots/history.
        """
        held_out = history["validation_accuracy" if "validation_accuracy" in history else "test_accuracy"]
        best, last = int(history.epoch[held_out.argmax()]), int(history.epoch.iloc[-1])
        return TestedRun(
            recipe=recipe,
            title=title,
            parameters=parameters,
            accuracy=float(self.correct.mean()),
            interval=list(accuracy_interval(self.correct)),
            last_accuracy=float(held_out.iloc[-1]),
            epoch=best if recipe["train"]["keep"] == "best" else last,
            best_epoch=best,
            gap=float(history.generalization_gap.iloc[-1]),
            top2=top_2_accuracy(self.true, self.log_probabilities),
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
        """A row for each class: run, class, images, precision, recall, f1."""
        return self._named(per_class(self.true, self.predicted, self.classes))

    def by_confidence(self) -> pd.DataFrame:
        """A row for each bin of confidence that holds images: run, lower, upper, images, confidence, accuracy."""
        return self._named(calibration(self.correct, self.confidence))

    def _named(self, table: pd.DataFrame) -> pd.DataFrame:
        table.insert(0, "run", self.run)
        return table


def compare(results: dict[str, TestResult], pairs: dict[str, list[str]]) -> dict[str, Comparison]:
    """Compare pairs (by name, the first and the second run) of results (by run) on the same images."""
    answers = [(results[first].correct, results[second].correct) for first, second in pairs.values()]
    tests = [compare_on_images(first, second) for first, second in answers]
    adjusted = holm([test.p for test in tests])
    return {
        name: Comparison(
            runs=runs,
            difference=test.difference,
            interval=list(test.interval),
            p=test.p,
            adjusted_p=p,
            only_right=only_right(*pair),
        )
        for (name, runs), pair, test, p in zip(pairs.items(), answers, tests, adjusted, strict=True)
    }


def suspects(results: list[TestResult]) -> pd.DataFrame:
    """List the images most likely labelled wrong, at most 50: all runs take them for one class that is not the label.

    Returns:
        Columns `image`, `label`, `predicted` and `confidence`, the lowest over the runs; the highest of these first.
    """
    tables = [result.predictions() for result in results]
    table = tables[0].rename(columns={"actual": "label"}).drop(columns="index")
    table["confidence"] = np.min([other.confidence for other in tables], axis=0)
    agreed = np.all([other.predicted == table.predicted for other in tables], axis=0)
    found = table[agreed & (table.predicted != table.label)]
    return found.sort_values("confidence", ascending=False, kind="stable").head(MOST_SUSPECTS).reset_index(drop=True)
