"""Tests of a difference in accuracy: between two models on the same images, and between two recipes over seeds.

Accuracies and differences are fractions, first minus second; intervals are 95 % intervals.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats
from scipy.optimize import brentq

SIGNIFICANT = 0.05  # p values below it are called significant
LEVEL = 1 - SIGNIFICANT  # of every interval
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
ENOUGH_SEEDS = 3  # for a verdict; of two, the t distribution has one degree of freedom: its quantile is 12.7
POWER = 0.8  # share of the studies that find a difference, see `seeds_needed`
MOST_SEEDS = 10_000

Verdict = Literal["better", "worse", "equal", "undecided"]


@dataclass(frozen=True)
class Difference:
    """The difference between two accuracies; the interval excludes zero exactly when p < 0.05."""

    difference: float  # in [-1, 1]
    interval: tuple[float, float]
    p: float  # chance of a difference at least as large, if there were none


@dataclass(frozen=True)
class RecipeComparison(Difference):
    """The difference between two recipes, for new seeds and new images."""

    shares: dict[str, float]  # of the difference's variance: images, seeds, rest; their sum is 1
    sd: float  # standard deviation of the difference over seeds
    error: float  # standard error of the difference
    seeds: int
    images: int

    def p_equal(self, margin: float) -> float:
        """Test that they differ by `margin` or more: the larger p of two one-sided tests (Schuirmann 1987)."""
        distance = margin - abs(self.difference)
        one_sided = _p_value(abs(distance) / self.error, self.shares["images"], self.seeds, self.images) / 2
        return one_sided if distance > 0 else 1 - one_sided


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Find the interval of an accuracy, in [0, 1] (Wilson 1927, *Probable inference*).

    Args:
        correct: bool N, true for each image that is classified rightly.
    """
    interval = stats.binomtest(int(correct.sum()), correct.size).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def compare_on_images(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare two models on the same images.

    Tango's score interval (1998, *Statistics in Medicine* 17: 891) and McNemar's z test (1947), which is the same score
    at a difference of zero.

    Args:
        first, second: bool N each, true for each image that the model classifies rightly.
    """
    images, (gained, lost) = len(first), only_right(first, second)
    interval = -_upper_limit(lost, gained, images), _upper_limit(gained, lost, images)
    p = 2 * stats.norm.sf(abs(_score(gained, lost, images, 0.0)))
    return Difference((gained - lost) / images, interval, float(p))


def only_right(first: np.ndarray, second: np.ndarray) -> list[int]:
    """Count the images that the first, and that the second model alone classifies rightly, of bool N each."""
    return [int((first & ~second).sum()), int((second & ~first).sum())]


def equal_on_images(counts: Sequence[int], images: int, margin: float) -> float:
    """Test that two models differ by `margin` or more: the larger p of two one-sided score tests (Tango 1998).

    Args:
        counts: as `only_right` returns them, of so many images.
    """
    gained, lost = counts
    return float(stats.norm.sf(min(_score(gained, lost, images, -margin), _score(lost, gained, images, -margin))))


def _score(gained: int, lost: int, images: int, difference: float) -> float:
    """Tango's z statistic of a true difference in (-1, 1), with the likeliest share of lost images for it."""
    b = (2 * images - gained + lost) * difference - gained - lost
    share = (np.sqrt(max(b**2 + 8 * images * (lost * difference * (1 - difference)), 0)) - b) / (4 * images)
    variance = images * (2 * share + difference * (1 - difference))
    return float((gained - lost - images * difference) / np.sqrt(variance)) if variance > 0 else 0.0


def _upper_limit(gained: int, lost: int, images: int) -> float:
    step = 1e-9  # at 1 the score is 0/0, and at the difference itself if no image is gained or lost
    start = (gained - lost) / images + step
    return brentq(lambda limit: _score(gained, lost, images, limit) + Z, start, 1 - step) if start < 1 else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p values of several tests, so that all verdicts hold together (Holm 1979), in the order given."""
    order = np.argsort(ps)
    adjusted = np.maximum.accumulate(np.sort(ps) * np.arange(len(ps), 0, -1)).clip(max=1)
    return [float(p) for p in adjusted[np.argsort(order)]]


def compare_recipes(first: np.ndarray, second: np.ndarray) -> RecipeComparison:
    """Compare two recipes by their answers with the same seeds to the same images, where both are samples.

    With A, B and E the mean squares of images, seeds and interaction, the mean difference has the variance
    (A - E + B) / (S N): crossed random effects (Owen 2007, *The pigeonhole bootstrap*), with A - E not below zero. B
    has S - 1 degrees of freedom, the part of the images almost N - 1; the quantile is the mean of both t quantiles,
    weighted by the parts (Cochran and Cox 1950, *Experimental designs*). So false verdicts stay at 5 % at most, which
    Satterthwaite's degrees of freedom exceed for few seeds. Where no answer differs, the interval is about Tango's.

    Args:
        first, second: bool S×N each, true where the model of a seed is right on an image; S is two or more.
    """
    gain = first.astype(float) - second  # S×N
    (seeds, images), difference = gain.shape, float(gain.mean())
    by_image, by_seed = gain.mean(0), gain.mean(1)
    rest = gain - by_image - by_seed[:, None] + difference
    interaction = (rest**2).sum() / ((seeds - 1) * (images - 1))
    of_images, of_seeds = seeds * by_image.var(ddof=1), images * by_seed.var(ddof=1)
    parts = max(of_images - interaction, 0), max(of_seeds - interaction, 0), min(of_seeds, interaction)
    variances = np.array(parts) / (seeds * images)  # of the difference
    variances[0] += max((Z / (images + Z**2)) ** 2 - variances.sum(), 0)
    error = float(np.sqrt(variances.sum()))
    shares = dict(zip(("images", "seeds", "rest"), (variances / error**2).tolist(), strict=True))
    half = _quantile(SIGNIFICANT, shares["images"], seeds, images) * error
    interval = max(difference - half, -1.0), min(difference + half, 1.0)
    p, sd = _p_value(abs(difference) / error, shares["images"], seeds, images), float(by_seed.std(ddof=1))
    return RecipeComparison(difference, interval, p, shares, sd, error, seeds, images)


def _quantile(p: float, share: float, seeds: int, images: int) -> float:
    """Quantile of |difference| / error at a two-sided p, if the images have this share of the variance."""
    return float(share * stats.t.isf(p / 2, images - 1) + (1 - share) * stats.t.isf(p / 2, seeds - 1))


def _p_value(statistic: float, share: float, seeds: int, images: int) -> float:
    """Invert `_quantile`; at least 1e-100, for scipy's t quantiles fail beyond 1e-200."""

    def excess(log_p: float) -> float:
        return _quantile(float(np.exp(log_p)), share, seeds, images) - statistic

    lowest = np.log(1e-100)
    return float(np.exp(lowest if excess(lowest) < 0 else brentq(excess, lowest, 0)))


def verdict_of(difference: float, p: float, p_equal: float) -> Verdict:
    """Judge whether the first is better than the second, by p values that are adjusted for all questions asked.

    Args:
        p: of the test that there is no difference.
        p_equal: of the test that the difference is the margin or more; within it, any difference counts as equal.
    """
    if min(p, p_equal) >= SIGNIFICANT:
        return "undecided"
    if p_equal < SIGNIFICANT:
        return "equal"
    return "better" if difference > 0 else "worse"


def seeds_needed(compared: RecipeComparison, difference: float) -> tuple[int, int, int]:
    """Find with how many seeds, 3 to 10,000, four of five studies on these very images would find a difference.

    By the power of the paired t test (Cohen 1988); a standard deviation is at least the step of one image. More seeds
    do not lessen the part that images have in the variance.

    Returns:
        That number and its 95 % range, from the chi-square interval of the standard deviation over seeds.
    """
    spread, freedom = max(compared.sd, 1 / compared.images), compared.seeds - 1
    shortest, longest = np.sqrt(freedom / stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], freedom))

    def power(seeds: int, effect: float) -> float:
        return stats.nct.sf(stats.t.ppf((1 + LEVEL) / 2, seeds - 1), seeds - 1, effect * np.sqrt(seeds))

    def count(factor: float) -> int:
        effect, counts = difference / (spread * factor), range(ENOUGH_SEEDS, MOST_SEEDS)
        return ENOUGH_SEEDS + bisect_left(counts, POWER, key=lambda seeds: power(seeds, effect))

    return count(1), count(shortest), count(longest)
