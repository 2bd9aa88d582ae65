import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from stages.core.quality import calibration, expected_calibration_error, per_class, summary


def test_per_class_figures_by_hand_with_a_class_never_predicted():
    table = per_class(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1]), ["cat", "dog", "frog"])
    assert table["class"].tolist() == ["cat", "dog", "frog"]
    assert table["images"].tolist() == [3, 2, 1]
    assert table["precision"].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert table["recall"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert table["f1"].tolist() == pytest.approx([2 / 3, 0.4, 0])


def test_per_class_figures_are_scikit_learns():
    random = np.random.default_rng(0)
    actual, predicted = random.integers(0, 4, (2, 500))
    table = per_class(actual, predicted, list("abcd"))
    for column, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert table[column].tolist() == pytest.approx(score(actual, predicted, average=None))


def test_confidences_fall_into_fifteen_bins_closed_above():
    confidence = np.array([1 / 15, 2 / 15, 0.14, 0.55, 0.6, 1.0])
    correct = np.array([False, True, True, False, True, True])
    bins = calibration(correct, confidence)
    assert bins["upper"].tolist() == pytest.approx([1 / 15, 2 / 15, 3 / 15, 9 / 15, 1])
    assert (bins["upper"] - bins["lower"]).tolist() == pytest.approx([1 / 15] * 5)
    assert bins["images"].tolist() == [1, 1, 1, 2, 1]
    assert bins["confidence"].tolist() == pytest.approx([1 / 15, 2 / 15, 0.14, 0.575, 1])
    assert bins["accuracy"].tolist() == [0, 1, 1, 0.5, 1]
    gaps = [1 / 15, 13 / 15, 0.86, 2 * 0.075, 0]
    assert expected_calibration_error(bins) == pytest.approx(sum(gaps) / 6)


def test_a_summary_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.6, 0.3, 0.1]])
    figures = summary(np.array([0, 1, 2]), probabilities)
    assert figures["accuracy"] == 0.666667
    assert figures["loss"] == pytest.approx(-(math.log(0.7) + math.log(0.5) + math.log(0.1)) / 3, abs=1e-6)
    assert figures["calibration_error"] == pytest.approx((0.3 + 0.5 + 0.6) / 3, abs=1e-6)
