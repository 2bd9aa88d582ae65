"""Tests of a difference in accuracy: between two models on the same images, and two recipes over seeds.

Accuracies and their differences are fractions, first minus second; every interval is a 95 % interval.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05  # p values below it are called significant
LEVEL = 1 - SIGNIFICANT  # of every interval
RESAMPLES = 9999
# Seeds for a verdict. Of two, the t distribution has one degree of freedom: an interval is 12.7 standard errors wide on
# either side, and holds only as far as the tails of the differences are those of a normal distribution.
ENOUGH_SEEDS = 3
POWER = 0.8  # share of studies that would find a difference, see `seeds_to_find`
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Comparison:
    """The difference between two accuracies, its interval and p value."""

    difference: float  # in [-1, 1]
    interval: tuple[float, float]
    p: float  # chance of a difference at least as large, if there were none

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Interval of an accuracy, in [0, 1] (Wilson 1927, *Probable inference*).

    Args:
        correct: bool N, true for each image that is classified rightly.
    """
    interval = stats.binomtest(int(correct.sum()), correct.size).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def compare_on_images(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare two models on the same images.

    The interval is the percentile bootstrap over images (Efron 1979), which keeps the two answers to an image together;
    p is that of McNemar's exact test (1947), on the images that one model alone has right.

    Args:
        first, second: bool N each, true for each image that the model classifies rightly.
    """
    gain = first.astype(np.int8) - second.astype(np.int8)  # N, of -1, 0 and 1
    bootstrap = stats.bootstrap(
        (gain,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", confidence_level=LEVEL, random_state=0
    )
    only_first, only_second = int((gain == 1).sum()), int((gain == -1).sum())
    p = stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    low, high = bootstrap.confidence_interval
    return Comparison(float(gain.mean()), (float(low), float(high)), float(p))


def compare_over_seeds(first: np.ndarray, second: np.ndarray, images: int) -> Comparison:
    """Compare two recipes by the accuracies that each reached with the same seeds.

    Student's paired t test (1908) and its interval, which hold as far as the differences are normally distributed. An
    accuracy moves in steps of one test image. Equal differences do not show that the seed has no effect: with few
    images the effect is often smaller than one image. A smaller standard deviation is therefore raised to one image.

    Args:
        first, second: accuracies, float S each, of the same S seeds in the same order; S is two or more.
        images: number of test images on which each accuracy was measured.
    """
    seeds, mean = len(first), float((first - second).mean())
    error = _spread(first, second, images) / np.sqrt(seeds)  # standard error of the mean
    half = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, seeds - 1)
    return Comparison(mean, (float(max(mean - half, -1)), float(min(mean + half, 1))), float(p))


def seeds_to_find(difference: float, first: np.ndarray, second: np.ndarray, images: int) -> int:
    """Number of seeds, at most MOST_SEEDS, with which a share POWER of the studies would find this difference.

    By the power of the paired t test (Cohen 1988, chapter 2), if accuracies spread as these do over the seeds.

    Args:
        first, second, images: see `compare_over_seeds`.
    """

    effect = difference / _spread(first, second, images)

    def power(seeds: int) -> float:
        return stats.nct.sf(stats.t.ppf((1 + LEVEL) / 2, seeds - 1), seeds - 1, effect * np.sqrt(seeds))

    return 2 + bisect_left(range(2, MOST_SEEDS), POWER, key=power)


def _spread(first: np.ndarray, second: np.ndarray, images: int) -> float:
    """Standard deviation of the differences between seeds, at least one test image."""
    return max(float((first - second).std(ddof=1)), 1 / images)
