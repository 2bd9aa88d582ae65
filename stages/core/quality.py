"""How good predictions are: figures over numpy arrays of labels (int64 N) and probabilities (N×classes)."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import log_loss, precision_recall_fscore_support

from stages.core.significance import accuracy_interval

BINS = 15  # as many as Guo et al. 2017


def per_class(actual: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """A row a class: its number of images, precision, recall and F1; 0 where a class is never predicted."""
    labels = range(len(classes))
    precision, recall, f1, images = precision_recall_fscore_support(actual, predicted, labels=labels, zero_division=0)
    return pd.DataFrame({"class": classes, "images": images, "precision": precision, "recall": recall, "f1": f1})


def calibration(correct: np.ndarray, confidence: np.ndarray) -> pd.DataFrame:
    """A row for each of 15 equal bins of confidence that holds images: limits, number of images, mean confidence and
    accuracy (Guo et al. 2017, *On Calibration of Modern Neural Networks*)."""
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)  # (lower, upper]
    table = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": correct})
    grouped = table.groupby("bin").agg(
        images=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    grouped.insert(0, "lower", edges[grouped.index])
    grouped.insert(1, "upper", edges[grouped.index + 1])
    return grouped.reset_index(drop=True)


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Mean distance between confidence and accuracy over the images of `calibration`'s bins, in [0, 1]."""
    return float(np.average((bins.confidence - bins.accuracy).abs(), weights=bins.images))


def calibrating_temperature(actual: np.ndarray, probabilities: np.ndarray) -> float | None:
    """The temperature by which to divide the logits for the lowest cross-entropy on these very images (Guo et al.):
    above 1 for a model that is too sure of itself. None where every image is right, as then there is no lowest."""
    if (probabilities.argmax(1) == actual).all():
        return None
    logits = np.log(np.clip(probabilities, np.finfo(np.float64).tiny, None))  # up to a constant an image
    images = np.arange(len(actual))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[images, actual].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(1 / 50), np.log(50)), method="bounded").x))


def top_k_accuracy(actual: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """Share of the images whose class is among the k likeliest; of equal probabilities the later class comes first."""
    likeliest = np.argsort(probabilities, axis=1, kind="stable")[:, -k:]
    return float((likeliest == actual[:, None]).any(1).mean())


def summary(actual: np.ndarray, probabilities: np.ndarray) -> dict:
    """What metrics/evaluation.json says of a run's predictions, to six places; metrics/README.md explains the keys."""
    correct, confidence = probabilities.argmax(1) == actual, probabilities.max(1)
    temperature = calibrating_temperature(actual, probabilities)
    return {
        "accuracy": round(float(correct.mean()), 6),
        "interval": [round(limit, 6) for limit in accuracy_interval(correct)],
        "top2": round(top_k_accuracy(actual, probabilities, 2), 6),
        "loss": round(float(log_loss(actual, probabilities, labels=np.arange(probabilities.shape[1]))), 6),
        "ece": round(expected_calibration_error(calibration(correct, confidence)), 6),
        "temperature": temperature and round(temperature, 4),
    }
