import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from stages.evaluation.metrics import (
    calibrating_temperature,
    calibration,
    expected_calibration_error,
    per_class,
    top_2_accuracy,
)


def test_per_class_figures_by_hand_with_a_class_never_predicted():
    table = per_class(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1]), ["cat", "dog", "frog"])
    assert table["class"].tolist() == ["cat", "dog", "frog"]
    assert table["images"].tolist() == [3, 2, 1]
    assert table["precision"].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert table["recall"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert table["f1"].tolist() == pytest.approx([2 / 3, 0.4, 0])


def test_per_class_figures_are_scikit_learns():
    true, predicted = np.random.default_rng(0).integers(0, 4, (2, 500))
    table = per_class(true, predicted, list("abcd"))
    for column, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert table[column].tolist() == pytest.approx(score(true, predicted, average=None))


def test_confidences_fall_into_fifteen_bins_closed_above():
    confidence = np.array([1 / 15, 2 / 15, 0.14, 0.55, 0.6, 1.0])
    correct = np.array([False, True, True, False, True, True])
    bins = calibration(correct, confidence)
    assert list(bins) == ["lower", "upper", "images", "confidence", "accuracy"]
    assert bins["upper"].tolist() == pytest.approx([1 / 15, 2 / 15, 3 / 15, 9 / 15, 1])
    assert (bins["upper"] - bins["lower"]).tolist() == pytest.approx([1 / 15] * 5)
    assert bins["images"].tolist() == [1, 1, 1, 2, 1]
    assert bins["confidence"].tolist() == pytest.approx([1 / 15, 2 / 15, 0.14, 0.575, 1])
    assert bins["accuracy"].tolist() == [0, 1, 1, 0.5, 1]
    gaps = [1 / 15, 13 / 15, 0.86, 2 * 0.075, 0]
    assert expected_calibration_error(bins) == pytest.approx(sum(gaps) / 6)


def test_the_two_likeliest_classes_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])
    assert top_2_accuracy(np.array([0, 1, 2, 1]), probabilities) == 0.75


def test_a_class_without_test_images_may_be_among_the_two_likeliest():
    assert top_2_accuracy(np.array([0, 1]), np.array([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])) == 0.5


def test_of_two_classes_one_of_the_two_likeliest_is_always_right():
    assert top_2_accuracy(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]])) == 1


def test_the_calibrating_temperature_by_hand():
    """A model always 90 % sure (a logit of 2 log 3) and right three times in four (log 3) is twice too sure."""
    probabilities = np.tile([0.9, 0.1], (8, 1))
    assert calibrating_temperature(np.array([0] * 6 + [1] * 2), probabilities) == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_no_other_temperature_gives_a_lower_loss(temperature):
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((20_000, 5))
    true = np.array([random.choice(5, p=row) for row in softmax(logits / temperature, axis=1)])
    best = calibrating_temperature(true, softmax(logits, axis=1))
    assert best == pytest.approx(temperature, rel=0.05)
    losses = [log_loss(true, softmax(logits / (best * factor), axis=1)) for factor in (0.98, 1, 1.02)]
    assert min(losses) == losses[1]


def test_a_model_that_is_always_right_has_no_calibrating_temperature():
    assert calibrating_temperature(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]])) is None


def test_a_class_that_a_model_holds_impossible_costs_no_warning_in_the_temperature():
    assert calibrating_temperature(np.array([0, 1, 1]), np.array([[1, 0], [0, 1], [1, 0.0]])) > 10
