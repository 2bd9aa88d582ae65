import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from stages.evaluation import significance
from stages.evaluation.significance import compare_on_images, compare_recipes, seeds_needed, verdict_of


def answers(gained: int, lost: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models: true where each is right, on images of which each alone has so many right, and both the rest."""
    counts = gained, lost, images - gained - lost
    return np.repeat([True, False, True], counts), np.repeat([False, True, True], counts)


def score(gained: int, lost: int, images: int, difference: float) -> float:
    """Tango's statistic by its definition: the variance is that of the likeliest shares with this difference."""
    counts = gained, lost, images - gained - lost

    def unlikelihood(share: float) -> float:
        return -xlogy(counts, [share + difference, share, 1 - 2 * share - difference]).sum()

    limits = max(0, -difference), (1 - difference) / 2
    share = minimize_scalar(unlikelihood, bounds=limits, method="bounded", options={"xatol": 1e-12}).x
    variance = 2 * share + difference - difference**2
    return (gained - lost - images * difference) / math.sqrt(images * variance)


def test_the_interval_of_an_accuracy_is_wilsons():
    for right, images in (0, 10), (8, 10), (10, 10), (9500, 10_000):
        reference = proportion_confint(right, images, method="wilson")
        assert significance.accuracy_interval(np.arange(images) < right) == pytest.approx(reference, abs=1e-12)


def test_tangos_interval_has_its_published_and_worked_values():
    """In points. Without a disagreement the limit is z²/(n + z²)."""
    for gained, lost, images, low, high in (
        (16, 6, 899, 0.10, 2.28),
        (667, 478, 10_000, 1.23, 2.56),
        (517, 415, 10_000, 0.42, 1.62),
        (0, 0, 20, -16.11, 16.11),
        (1, 7, 21, -51.72, -2.60),  # Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness: -0.517, -0.026
    ):
        found = compare_on_images(*answers(gained, lost, images))
        assert 100 * np.array(found.interval) == pytest.approx([low, high], abs=0.005)
        assert found.difference == (gained - lost) / images


@pytest.mark.parametrize(("gained", "lost", "images"), [(16, 6, 899), (3, 9, 12), (5, 0, 40), (0, 8, 20), (10, 10, 20)])
def test_the_limits_have_the_score_of_the_normal_quantile_and_p_is_mcnemars(gained, lost, images):
    found = compare_on_images(*answers(gained, lost, images))
    scores = [score(gained, lost, images, limit) for limit in found.interval]
    assert scores == pytest.approx([1.959964, -1.959964], abs=1e-4)
    reference = mcnemar([[0, gained], [lost, 0]], exact=False, correction=False)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-12)


def test_an_interval_excludes_zero_exactly_when_p_is_below_five_percent_and_is_mirrored():
    counts = (pair for pair in product(range(17), repeat=2) if sum(pair) <= 16)
    compared = {pair: compare_on_images(*answers(*pair, 16)) for pair in counts}
    for (gained, lost), found in compared.items():
        low, high = found.interval
        assert -1 <= low <= found.difference <= high <= 1
        assert (low > 0 or high < 0) == (found.p < 0.05)
        mirrored = compared[lost, gained]
        assert (mirrored.difference, mirrored.p, mirrored.interval) == (-found.difference, found.p, (-high, -low))
    assert compared[0, 0].p == 1
    assert compared[16, 0].interval[1] == 1


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (30, 28), (28, 30), (60, 20)])
def test_models_are_equal_by_two_one_sided_scores_at_the_margin(gained, lost):
    expected = stats.norm.sf(min(score(gained, lost, 10_000, -0.003), -score(gained, lost, 10_000, 0.003)))
    assert significance.equal_on_images([gained, lost], 10_000, 0.003) == pytest.approx(expected, rel=1e-3)


def recipes(images: int, wrong_by_seed: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """One recipe that is always right, and one that has these images wrong with each seed."""
    second = np.ones((len(wrong_by_seed), images), dtype=bool)
    for row, wrong in zip(second, wrong_by_seed, strict=True):
        row[wrong] = False
    return np.ones_like(second), second


def test_where_images_do_not_differ_recipes_are_compared_by_the_t_test_over_seeds():
    """Each of 60 images is wrong with one of three seeds: 10, 20 and 30 of them, so images have no part."""
    first, second = recipes(60, [list(range(10)), list(range(10, 30)), list(range(30, 60))])
    found = compare_recipes(first, second)
    half = 4.302653 * (1 / 6) / math.sqrt(3)
    assert found.difference == pytest.approx(1 / 3)
    assert found.interval == pytest.approx([1 / 3 - half, 1 / 3 + half], abs=1e-6)
    assert found.p == pytest.approx(stats.ttest_rel(first.mean(1), second.mean(1)).pvalue)
    assert (found.shares["images"], found.sd) == (0, pytest.approx(1 / 6))
    for margin in 0.9, 0.5, 0.2:  # the larger of two one-sided p
        reference = stats.ttest_1samp(first.mean(1) - second.mean(1), margin, alternative="less")
        assert found.p_equal(margin) == pytest.approx(reference.pvalue)
        assert compare_recipes(second, first).p_equal(margin) == pytest.approx(reference.pvalue)


def test_where_seeds_do_not_differ_recipes_are_compared_by_the_t_test_over_images():
    found = compare_recipes(*recipes(200, [[3, 50, 51, 120]] * 3))
    reference = stats.ttest_1samp(np.arange(200) < 4, 0)
    assert found.interval == pytest.approx(list(reference.confidence_interval(0.95)))
    assert found.p == pytest.approx(reference.pvalue)
    assert found.shares == pytest.approx({"images": 1, "seeds": 0, "rest": 0})
    assert compare_recipes(*recipes(200, [[3, 50], [3, 51], [3, 52]])).shares == found.shares  # the same accuracies


def test_variance_and_shares_are_those_of_the_analysis_of_variance():
    first, second = recipes(12, [[1, 2, 3], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2], [1, 3, 9]])
    found = compare_recipes(first, second)
    seed, image = np.indices((4, 12)).reshape(2, -1)
    table = pd.DataFrame({"gain": (first.astype(int) - second).ravel(), "seed": seed, "image": image})
    squares = anova_lm(ols("gain ~ C(image) + C(seed)", table).fit()).mean_sq
    rest = squares["Residual"]
    parts = np.array([squares["C(image)"] - rest, squares["C(seed)"] - rest, rest]) / 48
    assert min(parts) > 0  # else nothing is tested below
    assert found.error == pytest.approx(math.sqrt(parts.sum()))
    parts /= parts.sum()
    assert found.shares == pytest.approx(dict(zip(("images", "seeds", "rest"), parts, strict=True)))
    for p, half in (0.05, found.interval[1] - found.difference), (found.p, abs(found.difference)):
        quantile = parts[0] * stats.t.ppf(1 - p / 2, 11) + (1 - parts[0]) * stats.t.ppf(1 - p / 2, 3)
        assert quantile * found.error == pytest.approx(half)


def test_recipes_that_never_or_always_differ_have_an_interval_and_a_p():
    """Without a difference it is about Tango's, z²/(n + z²); it ends where differences do; p is never zero."""
    same = np.ones((3, 500), dtype=bool)
    found = compare_recipes(same, same)
    assert (found.difference, found.p, found.sd) == (0, 1, 0)
    assert found.interval == pytest.approx(compare_on_images(same[0], same[0]).interval, rel=0.01)
    first, second = recipes(10, [list(range(9)), []])
    assert compare_recipes(first, second).interval == compare_recipes(second, first).interval == (-1, 1)
    assert 0 < compare_recipes(*recipes(5000, [list(range(5000))] * 5)).p < 1e-99


def simulate(seeds: int, own: float, spread: float, shift: float) -> list[float]:
    """Study two recipes on 1,000 images again and again; an answer is right where a sum of normal terms is positive.

    An image is hard for both, and for one alone by `own`; seeds differ by `spread`; the first recipe is better by
    `shift`. Returns the shares of studies where the interval holds the true difference, p is below 5 %, the recipes are
    equal within this very difference, and p of the t test over seeds is below 5 %.
    """
    random, outcomes, base, images = np.random.default_rng(seeds), [], 3.0, 1000
    total = math.sqrt(1.3**2 + own**2 + spread**2 + 0.5**2)
    true = stats.norm.cdf((base + shift) / total) - stats.norm.cdf(base / total)
    for _ in range(400):
        shared = base + 1.3 * random.standard_normal((1, 1, images))
        terms = shared + own * random.standard_normal((2, 1, images)) + spread * random.standard_normal((2, seeds, 1))
        terms += 0.5 * random.standard_normal((2, seeds, images))
        found = compare_recipes(terms[0] > -shift, terms[1] > 0)
        covered = found.interval[0] <= true <= found.interval[1]
        by_t = abs(found.difference) > stats.t.ppf(0.975, seeds - 1) * found.sd / math.sqrt(seeds)
        outcomes.append([covered, found.p < 0.05, found.p_equal(abs(true)) < 0.05, by_t])
    return np.mean(outcomes, axis=0).tolist()


@pytest.mark.parametrize(("seeds", "own", "spread", "shift"), [(3, 1, 0.02, 0), (6, 1, 0.02, 0), (3, 0.2, 0.3, 0.3)])
def test_intervals_hold_the_difference_and_few_studies_name_a_false_winner_or_call_it_equal(seeds, own, spread, shift):
    """With hard images of each recipe's own, with which the t test over seeds fails, and with seeds that differ."""
    coverage, significant, equal, significant_by_t = simulate(seeds, own, spread, shift)
    assert coverage > 0.94
    assert (equal if shift else significant) < 0.06
    assert shift or significant_by_t > 0.12


def test_several_p_values_are_adjusted_as_holm_does_and_judged_at_five_percent():
    for ps in [0.2, 0.001, 0.03, 0.011], [0.025, 0.95], [0.2], [0.6, 0.9, 0.7]:
        assert significance.holm(ps) == pytest.approx(multipletests(ps, method="holm")[1].tolist())
    assert [verdict_of(d, 0.049, 1) for d in (0.01, -0.01)] == ["better", "worse"]
    assert [verdict_of(0.001, 0.6, equal) for equal in (0.049, 0.05)] == ["equal", "undecided"]
    assert verdict_of(0.01, 0.05, 1) == "undecided"
    assert verdict_of(0.001, 0.01, 0.02) == "equal"  # not zero, and within the margin all the same


def needed(sd: float, margin: float, seeds: int = 5) -> tuple[int, int, int]:
    study = significance.RecipeComparison(0.0, (0.0, 0.0), 1.0, {}, sd, error=1.0, seeds=seeds, images=10_000)
    return seeds_needed(study, margin)


def test_the_seeds_needed_have_the_worked_ranges_and_bounds_and_are_those_of_statsmodels_power():
    assert [needed(sd, 0.003) for sd in (0.00288, 0.00497)] == [(10, 5, 62), (24, 10, 180)]
    assert [needed(0.0001, 0.5), needed(0, 1e-9)] == [(3, 3, 3), (10_000, 10_000, 10_000)]
    assert needed(0, 0.0001) == needed(0.0001, 0.0001) < needed(0.0002, 0.0001)  # the step of one image
    limits = [math.sqrt(5 / stats.chi2.ppf(level, 5)) for level in (0.975, 0.025)]
    for sd, of in product(np.linspace(0.0014, 0.004, 16), range(3)):
        found, deviation = needed(sd, 0.003, seeds=6)[of], sd * [1, *limits][of]
        power = [TTestPower().power(0.003 / deviation, nobs=count, alpha=0.05) for count in (found, found - 1)]
        assert power[0] >= 0.8
        assert found == 3 or power[1] < 0.8
