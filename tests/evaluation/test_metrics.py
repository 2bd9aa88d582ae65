from itertools import product

import numpy as np
import pandas as pd
import pytest

from stages.evaluation import metrics
from stages.evaluation.metrics import TestResult, suspects

CLASSES = ["cat", "dog", "frog"]
RECIPE = {"train": {"keep": "best"}}


def result(true: list[int], probabilities: list[list[float]], run: str = "r") -> TestResult:
    names = np.array([f"{number}.png" for number in range(len(true))])
    return TestResult(run, np.array(true), np.log(probabilities), CLASSES[: len(probabilities[0])], names)


def answering(correct: list[int], run: str) -> TestResult:
    return result([0] * len(correct), [[0.7, 0.3] if right else [0.2, 0.8] for right in correct], run)


def history(prefix: str = "test") -> pd.DataFrame:
    figures = {f"{prefix}_accuracy": [0.5, 0.8, 0.8, 0.7], "generalization_gap": [0.1, 0.02, 0.03, 0.25]}
    return pd.DataFrame({"epoch": [1, 2, 3, 4], "train_accuracy": [0.6, 0.82, 0.83, 0.95], **figures})


def test_calibration_in_the_figures_of_a_run_by_hand():
    """Eight images 90 % sure, of which six are right; chance alone gives Σ |k - 7.2| / 8 over the binomial."""
    summary = result([0] * 6 + [1] * 2, [[0.9, 0.1]] * 8).summary(RECIPE, "", 1, history())
    assert summary.ece == pytest.approx(0.15)
    chances = [8 * 0.9**7 * 0.1, 0.9**8]  # of 7 and 8; the mean distance is twice that above the mean
    assert summary.ece_expected == pytest.approx(2 * chances[1] * 0.8 / 8)
    assert (summary.temperature, summary.top2) == (pytest.approx(2), 1)


@pytest.mark.parametrize("prefix", ["test", "validation"])
@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 4)])
def test_epochs_and_gap_come_from_the_history(prefix, keep, epoch):
    summary = result([0], [[0.9, 0.1]]).summary({"train": {"keep": keep}}, "", 1, history(prefix))
    assert (summary.epoch, summary.best_epoch, summary.last_accuracy, summary.gap) == (epoch, 2, 0.7, 0.25)


def test_a_run_without_a_right_image_has_figures_and_a_loss_that_is_not_clipped():
    log_probabilities = np.array([[-69.18, -1e-9], [-1e-9, -69.18]])
    tested = TestResult("r", np.array([0, 1]), log_probabilities, CLASSES[:2], np.array(["a", "b"]))
    summary, images = tested.summary(RECIPE, "", 1, history()), tested.by_class().images
    assert (summary.accuracy, summary.interval[0], summary.loss, summary.temperature) == (0, 0, 69.18, None)
    assert (images.tolist(), images.dtype.kind) == ([1, 1], "i")


def test_scores_by_class_by_hand_with_a_class_never_predicted():
    one, two, three = [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.2, 0.6, 0.2]
    table = result([0, 0, 0, 1, 1, 2], [one, one, two, two, one, three]).by_class()
    assert list(table) == ["run", "class", "images", "precision", "recall", "f1"]
    assert table[["run", "class", "images"]].to_numpy().tolist() == [["r", "cat", 3], ["r", "dog", 2], ["r", "frog", 1]]
    scores = np.array([[2 / 3, 2 / 3, 2 / 3], [1 / 3, 1 / 2, 0.4], [0, 0, 0]])
    assert table[["precision", "recall", "f1"]].to_numpy() == pytest.approx(scores)
    assert result([0], [one]).by_class().images.tolist() == [1, 0, 0]
    counts = metrics.confusion(pd.Series(["cat", "cat", "dog"]), pd.Series(["dog", "dog", "dog"]), CLASSES)
    assert counts.to_numpy().tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 0]]  # rows are true classes
    assert list(counts.index) == list(counts.columns) == CLASSES


def test_confidences_fall_into_fifteen_bins_closed_above():
    confidence = np.array([1 / 15, 2 / 15, 0.14, 0.55, 0.6, 1.0])
    bins = metrics.calibration(np.array([False, True, True, False, True, True]), confidence)
    assert list(bins) == ["lower", "upper", "images", "confidence", "accuracy"]
    assert (15 * bins[["lower", "upper"]].T).to_numpy() == pytest.approx(np.array([[0, 1, 2, 8, 14], [1, 2, 3, 9, 15]]))
    assert (bins.images.tolist(), bins.accuracy.tolist()) == ([1, 1, 1, 2, 1], [0, 1, 1, 0.5, 1])
    assert bins.confidence.tolist() == pytest.approx([1 / 15, 2 / 15, 0.14, 0.575, 1])
    assert metrics.calibration_error(bins) == pytest.approx((1 / 15 + 13 / 15 + 0.86 + 2 * 0.075) / 6)


def test_the_expected_error_is_the_mean_over_all_outcomes():
    """All 2^9 outcomes, each with its chance; bins of 1, 3 and 5 images."""
    confidence, mean = np.array([0.5, 0.81, 0.82, 0.86, 0.94, 0.97, 0.95, 0.99, 1.0]), 0.0
    for right in product([False, True], repeat=9):
        chance = np.where(right, confidence, 1 - confidence).prod()
        mean += chance * metrics.calibration_error(metrics.calibration(np.array(right), confidence))
    assert metrics.expected_error(confidence) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize(("temperature", "found"), [(49, 49), (51, None), (1 / 49, 1 / 49), (1 / 51, None)])
def test_temperatures_are_searched_from_a_fiftieth_to_fifty(temperature, found):
    logits = np.tile([np.log(3) * temperature, 0], (4, 1))
    assert metrics.best_temperature(np.array([0, 0, 0, 1]), logits) == (found and pytest.approx(found))
    assert metrics.best_temperature(np.zeros(4, dtype=int), logits) is None  # all right
    assert metrics.best_temperature(np.ones(4, dtype=int), logits) is None  # all wrong


def test_predictions_and_confidences_are_tables():
    tested = result([0, 2], [[0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    predictions, bins = tested.predictions(), tested.by_confidence()
    assert list(predictions) == ["index", "image", "actual", "predicted", "confidence"]
    assert predictions.iloc[:, :4].to_numpy().tolist() == [[0, "0.png", "cat", "dog"], [1, "1.png", "frog", "frog"]]
    assert predictions.confidence.tolist() == pytest.approx([0.7, 0.8])
    assert list(bins) == ["run", "lower", "upper", "images", "confidence", "accuracy"]
    assert (bins.run.tolist(), bins.accuracy.tolist(), bins.images.tolist()) == (["r", "r"], [0, 1], [1, 1])


def test_suspects_are_at_most_fifty_images_that_all_runs_take_for_the_same_other_class():
    """Right by one; two other classes; 90 and 70 % sure; 80 and 95 %; right by all."""
    first = [[0.1, 0.9, 0], [0.1, 0.9, 0], [0.1, 0.9, 0], [0.2, 0.8, 0], [0.9, 0.1, 0]]
    second = [[0.9, 0.1, 0], [0.1, 0, 0.9], [0.3, 0.7, 0], [0.05, 0.95, 0], [0.8, 0.2, 0]]
    with np.errstate(divide="ignore"):
        table = suspects([result([0] * 5, first), result([0] * 5, second)])
    assert list(table) == ["image", "label", "predicted", "confidence"]
    assert table.image.tolist() == ["3.png", "2.png"]
    assert (table.label.tolist(), table.predicted.tolist()) == (["cat", "cat"], ["dog", "dog"])
    assert table.confidence.tolist() == pytest.approx([0.8, 0.7])
    assert suspects([answering([0] * 60, "r")]).image.tolist() == [f"{number}.png" for number in range(50)]
    assert suspects([answering([1] * 60, "r")]).empty
