"""The measures of a run and of a pair of runs, as the types of the files that hold them."""

import numpy as np
from sklearn.metrics import log_loss

from stages.common.formats import CalibrationBin, ClassScores, ComparedRuns, EvaluatedRun, Prediction
from stages.common.params import Recipe
from stages.evaluation import metrics
from stages.evaluation.significance import accuracy_interval, compare_on_images


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
            top2=metrics.top_2_accuracy(self.true, self.probabilities),
            loss=float(log_loss(self.true, self.probabilities, labels=range(len(self.classes)))),
            ece=metrics.expected_calibration_error(metrics.calibration(self.correct, self.confidence)),
            temperature=metrics.calibrating_temperature(self.true, self.probabilities),
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
        table = metrics.per_class(self.true, self.predicted, self.classes)
        return [ClassScores.model_validate({"run": self.run, **row}) for row in table.to_dict("records")]

    def by_confidence(self) -> list[CalibrationBin]:
        """A row for each bin of confidence that holds images."""
        table = metrics.calibration(self.correct, self.confidence)
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
