"""Whether a difference in accuracy is more than chance, between two models on the same images or over several seeds."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05  # what a p value is held against
LEVEL = 1 - SIGNIFICANT  # of every interval
RESAMPLES = 9999


@dataclass(frozen=True)
class Comparison:
    """How much better a first model is than a second. Differences are of accuracies as fractions, first less second."""

    difference: float
    interval: tuple[float, float]  # 95 %
    p: float  # of a difference as large as this by chance alone

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of an accuracy, from whether each image is right (bool N)."""
    interval = stats.binomtest(int(correct.sum()), correct.size).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def compare_on_images(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Two models, from whether each has the same images right (bool N each).

    The interval is the percentile bootstrap over images (Efron 1979), which keeps the two answers to an image together;
    p is McNemar's exact test (1947) on the images that one model alone has right.
    """
    gain = first.astype(np.int8) - second.astype(np.int8)  # N, of -1, 0 and 1
    bootstrap = stats.bootstrap(
        (gain,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", confidence_level=LEVEL, random_state=0
    )
    only_first, only_second = int((gain == 1).sum()), int((gain == -1).sum())
    p = stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    low, high = bootstrap.confidence_interval
    return Comparison(float(gain.mean()), (float(low), float(high)), float(p))


def compare_over_seeds(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Two recipes, from the accuracies that each reached with the same two or more seeds (float S each).

    Student's paired t test and its interval: they hold as far as differences between seeds are normally distributed.
    """
    differences = np.round(first - second, 9)  # float noise is no difference between seeds
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # to which a t test gives no number
        return Comparison(mean, (mean, mean), 0.0 if mean else 1.0)
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(LEVEL)
    return Comparison(mean, (float(low), float(high)), float(test.pvalue))
