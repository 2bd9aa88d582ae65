from itertools import product

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from stages.evaluation.calibration import best_temperature, calibration, calibration_error, expected_error


def test_confidences_fall_into_fifteen_bins_closed_above():
    confidence = np.array([1 / 15, 2 / 15, 0.14, 0.55, 0.6, 1.0])
    bins = calibration(np.array([False, True, True, False, True, True]), confidence)
    assert list(bins) == ["lower", "upper", "images", "confidence", "accuracy"]
    assert bins.upper.tolist() == pytest.approx([1 / 15, 2 / 15, 3 / 15, 9 / 15, 1])
    assert bins.lower.tolist() == pytest.approx([0, 1 / 15, 2 / 15, 8 / 15, 14 / 15])
    assert bins.images.tolist() == [1, 1, 1, 2, 1]
    assert bins.confidence.tolist() == pytest.approx([1 / 15, 2 / 15, 0.14, 0.575, 1])
    assert bins.accuracy.tolist() == [0, 1, 1, 0.5, 1]
    assert calibration_error(bins) == pytest.approx((1 / 15 + 13 / 15 + 0.86 + 2 * 0.075) / 6)


def test_the_expected_error_is_the_mean_over_all_outcomes():
    """All 2^9 outcomes, each with its chance; bins of 1, 3 and 5 images."""
    confidence, mean = np.array([0.5, 0.81, 0.82, 0.86, 0.94, 0.97, 0.95, 0.99, 1.0]), 0.0
    for right in product([False, True], repeat=9):
        chance = np.where(right, confidence, 1 - confidence).prod()
        mean += chance * calibration_error(calibration(np.array(right), confidence))
    assert expected_error(confidence) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_no_other_temperature_gives_a_lower_loss(temperature):
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((5000, 5))
    true = (softmax(logits / temperature, axis=1).cumsum(1) < random.random((5000, 1))).sum(1)
    best = best_temperature(true, log_softmax(logits, axis=1))
    assert best == pytest.approx(temperature, rel=0.1)
    assert best == pytest.approx(best_temperature(true, logits))
    losses = [log_loss(true, softmax(logits / (best * factor), axis=1)) for factor in (0.999, 1, 1.001)]
    assert min(losses) == losses[1]


@pytest.mark.parametrize(("temperature", "found"), [(49, 49), (51, None), (1 / 49, 1 / 49), (1 / 51, None)])
def test_temperatures_are_searched_from_a_fiftieth_to_fifty(temperature, found):
    logits = np.tile([np.log(3) * temperature, 0], (4, 1))
    assert best_temperature(np.array([0, 0, 0, 1]), logits) == (found and pytest.approx(found))
    assert best_temperature(np.zeros(4, dtype=int), logits) is None  # all right
    assert best_temperature(np.ones(4, dtype=int), logits) is None  # all wrong
