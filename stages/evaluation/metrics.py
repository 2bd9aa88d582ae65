"""Measures of a classifier: functions of true labels (int64 N) and of predicted labels or probabilities (N×classes)."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from stages.common.formats import CalibrationBin, ClassScores, ComparedRuns, EvaluatedRun, Prediction
from stages.common.params import Recipe
from stages.evaluation.significance import accuracy_interval, compare_on_images

BINS = 15  # of confidence, as in Guo et al. 2017
COLDEST, HOTTEST = 1 / 50, 50  # limits of a calibrating temperature


def top_2_accuracy(true: np.ndarray, probabilities: np.ndarray) -> float:
    """Share of the images whose class is among the two likeliest, in [0, 1].

    Args:
        true: int64 N.
        probabilities: float N×classes.
    """
    classes = probabilities.shape[1]
    if classes == 2:  # for which scikit-learn wants other arguments
        return 1.0
    return float(top_k_accuracy_score(true, probabilities, k=2, labels=range(classes)))


def confusion(true: pd.Series, predicted: pd.Series, classes: list[str]) -> pd.DataFrame:
    """Number of images of each class (rows) that are taken for each class (columns).

    Args:
        true, predicted: N names each, out of `classes`.
    """
    return pd.DataFrame(confusion_matrix(true, predicted, labels=classes), index=classes, columns=classes)


def per_class(true: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Scores of each class against all others.

    Args:
        true, predicted: int64 N each, indices into `classes`.

    Returns:
        A row for each class, columns `class`, `images` (of this class), `precision`, `recall`, `f1`, in [0, 1]; 0 for a
        precision or recall that is not defined, because the class was never predicted or has no image.
    """
    precision, recall, f1, images = precision_recall_fscore_support(
        true, predicted, labels=range(len(classes)), zero_division=0
    )
    return pd.DataFrame({"class": classes, "images": images, "precision": precision, "recall": recall, "f1": f1})


def calibration(correct: np.ndarray, confidence: np.ndarray) -> pd.DataFrame:
    """Accuracy against confidence (Guo et al. 2017, *On calibration of modern neural networks*, figure 1).

    Args:
        correct: bool N, true for each image that is classified rightly.
        confidence: float N, the probability of the predicted class, in (0, 1].

    Returns:
        A row for each of 15 equal bins of confidence, (lower, upper], that holds images: columns `lower`, `upper`,
        `images`, `confidence` (mean), `accuracy`.
    """
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)  # N
    table = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": correct})
    grouped = table.groupby("bin").agg(
        images=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    grouped.insert(0, "lower", edges[grouped.index])
    grouped.insert(1, "upper", edges[grouped.index + 1])
    return grouped.reset_index(drop=True)


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Mean distance between confidence and accuracy over all images, in [0, 1]; 0 is best (Guo et al., equation 3).

    Args:
        bins: as `calibration` returns them.
    """
    return float(np.average((bins.confidence - bins.accuracy).abs(), weights=bins.images))


def calibrating_temperature(true: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Temperature by which to divide the logits for the lowest cross-entropy on these images (Guo et al. 2017,
    section 4.2): above 1 for a model that is too sure of itself, 1 is best. In [1/50, 50].

    Args:
        true: int64 N.
        probabilities: float N×classes.

    Returns:
        None if every image is right: then a lower temperature always lowers the cross-entropy.
    """
    if (probabilities.argmax(1) == true).all():
        return None
    logits = np.log(np.clip(probabilities, np.finfo(np.float64).tiny, None))  # N×classes, up to a constant a row
    images = np.arange(len(true))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[images, true].mean()

    limits = np.log(COLDEST), np.log(HOTTEST)
    return float(np.exp(minimize_scalar(loss, bounds=limits, method="bounded").x))


class Tested:
    """A run on N test images.

    Args:
        run: its name.
        true: labels, int64 N, indices into `classes`.
        probabilities: float64 N×classes.
        classes: names.

    Attributes:
        predicted: the likeliest class of each image, int64 N.
        confidence: its probability, float64 N.
        correct: true where it is the label, bool N.
    """

    def __init__(self, run: str, true: np.ndarray, probabilities: np.ndarray, classes: list[str]):
        self.run, self.true, self.probabilities, self.classes = run, true, probabilities, classes
        self.predicted, self.confidence = probabilities.argmax(1), probabilities.max(1)
        self.correct = self.predicted == true

    def summary(self, recipe: Recipe, parameters: int) -> EvaluatedRun:
        """The figures of metrics/evaluation.json."""
        return EvaluatedRun(
            model=recipe.settings.title,
            parameters=parameters,
            epochs=recipe.settings.epochs,
            weight_decay=recipe.train.weight_decay,
            seed=recipe.seed,
            accuracy=float(self.correct.mean()),
            interval=list(accuracy_interval(self.correct)),
            top2=top_2_accuracy(self.true, self.probabilities),
            loss=float(log_loss(self.true, self.probabilities, labels=range(len(self.classes)))),
            ece=expected_calibration_error(calibration(self.correct, self.confidence)),
            temperature=calibrating_temperature(self.true, self.probabilities),
        )

    def predictions(self) -> list[Prediction]:
        """A row for each image."""
        rows = zip(self.true, self.predicted, self.confidence.tolist(), strict=True)
        return [
            Prediction(index=i, actual=self.classes[label], predicted=self.classes[predicted], confidence=confidence)
            for i, (label, predicted, confidence) in enumerate(rows)
        ]

    def by_class(self) -> list[ClassScores]:
        """A row for each class."""
        table = per_class(self.true, self.predicted, self.classes)
        return [ClassScores.model_validate({"run": self.run, **row}) for row in table.to_dict("records")]

    def by_confidence(self) -> list[CalibrationBin]:
        """A row for each bin of confidence that holds images."""
        table = calibration(self.correct, self.confidence)
        return [CalibrationBin.model_validate({"run": self.run, **row}) for row in table.to_dict("records")]


def compare(first: Tested, second: Tested) -> ComparedRuns:
    """Two runs on the same images."""
    comparison = compare_on_images(first.correct, second.correct)
    return ComparedRuns(
        runs=[first.run, second.run],
        difference=comparison.difference,
        interval=list(comparison.interval),
        p=comparison.p,
        only_right=[int((first.correct & ~second.correct).sum()), int((second.correct & ~first.correct).sum())],
    )
