"""How good predictions are: figures over numpy arrays of labels (int64 N) and probabilities (N×classes)."""

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

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


def summary(actual: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, cross-entropy and expected calibration error, to six places."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    bins = calibration(predicted == actual, confidence)
    labels = np.arange(probabilities.shape[1])
    return {
        "accuracy": round(float(accuracy_score(actual, predicted)), 6),
        "loss": round(float(log_loss(actual, probabilities, labels=labels)), 6),
        "calibration_error": round(expected_calibration_error(bins), 6),
    }
