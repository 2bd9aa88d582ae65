import math

import numpy as np
import pytest
from scipy import stats

from stages.evaluation.significance import accuracy_interval, compare_on_images, compare_over_seeds, seeds_to_find


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models: true where each is right, for so many images of each kind."""
    counts = both, only_first, only_second, neither
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(0, 10, 0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1), (9500, 10_000, 0.9456, 0.9541)],
)
def test_the_interval_of_an_accuracy_is_wilsons(correct, images, low, high):
    z, share = 1.959964, correct / images
    centre, half = share + z**2 / (2 * images), z * math.sqrt((share * (1 - share) + z**2 / (4 * images)) / images)
    expected = [(centre - half) / (1 + z**2 / images), (centre + half) / (1 + z**2 / images)]
    found = accuracy_interval(np.arange(images) < correct)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found == pytest.approx([low, high], abs=5e-5)


def test_mcnemars_test_by_hand():
    """Of 12 images that one model alone has right, 2 or fewer are the second's by chance in 79 of 4,096 cases."""
    comparison = compare_on_images(*answers(both=50, only_first=10, only_second=2, neither=38))
    assert comparison.difference == pytest.approx(0.08)
    assert comparison.p == pytest.approx(2 * 79 / 4096)
    assert comparison.significant


def test_ten_against_four_is_no_evidence():
    comparison = compare_on_images(*answers(50, 10, 4, 36))
    assert comparison.p == pytest.approx(2 * sum(math.comb(14, k) for k in range(5)) / 2**14)
    assert not comparison.significant


def test_the_bootstrap_interval_is_the_normal_approximation_where_that_holds():
    comparison = compare_on_images(*answers(9000, 400, 300, 300))
    deviation = math.sqrt((0.07 - 0.01**2) / 10_000)
    expected = [0.01 - 1.96 * deviation, 0.01 + 1.96 * deviation]
    assert comparison.interval == pytest.approx(expected, abs=3e-4)


def test_comparing_the_other_way_round_changes_the_sign_alone():
    first, second = answers(700, 100, 60, 140)
    one, other = compare_on_images(first, second), compare_on_images(second, first)
    assert one.difference == -other.difference
    assert one.p == other.p
    assert one.interval == pytest.approx([-limit for limit in reversed(other.interval)], abs=2e-3)


def test_a_model_is_not_better_than_itself():
    first, _ = answers(70, 10, 0, 20)
    comparison = compare_on_images(first, first)
    assert (comparison.difference, comparison.interval, comparison.p) == (0, (0, 0), 1)


def test_the_same_images_give_the_same_interval():
    first, second = answers(700, 100, 60, 140)
    assert compare_on_images(first, second) == compare_on_images(first, second)


def test_the_t_test_over_seeds_by_hand():
    """Differences of 1, 2 and 3 points: mean 2, standard error 1/√3, t with two degrees of freedom."""
    comparison = compare_over_seeds(np.array([0.91, 0.93, 0.95]), np.array([0.90, 0.91, 0.92]), images=10_000)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert comparison.difference == pytest.approx(0.02)
    assert comparison.interval == pytest.approx([0.02 - half, 0.02 + half], abs=1e-6)
    assert comparison.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    assert not comparison.significant


def test_the_t_test_over_seeds_is_scipys_paired_one():
    first, second = np.random.default_rng(0).normal([[0.95], [0.94]], 0.004, (2, 7))
    comparison, reference = compare_over_seeds(first, second, images=10_000), stats.ttest_rel(first, second)
    assert comparison.p == pytest.approx(reference.pvalue)
    assert comparison.interval == pytest.approx(list(reference.confidence_interval(0.95)))


def test_over_seeds_the_other_way_round_the_interval_is_mirrored():
    first, second = np.array([0.91, 0.93, 0.95]), np.array([0.90, 0.91, 0.92])
    one, other = compare_over_seeds(first, second, 500), compare_over_seeds(second, first, 500)
    assert one.p == pytest.approx(other.p)
    assert one.interval == pytest.approx([-limit for limit in reversed(other.interval)])


def test_seeds_that_all_differ_alike_are_no_proof_on_few_images():
    """Twice one image of 50 more, three times: a standard deviation of a step makes t = 2√3, as above."""
    accuracies = np.array([0.5, 0.52, 0.56])
    comparison = compare_over_seeds(accuracies + 0.04, accuracies, images=50)
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert comparison.difference == pytest.approx(0.04)
    assert comparison.interval == pytest.approx([0.04 - half, 0.04 + half], abs=1e-6)
    assert comparison.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    assert not comparison.significant


def test_seeds_that_all_differ_alike_by_many_images_are_one():
    accuracies = np.array([0.5, 0.52, 0.56])
    comparison = compare_over_seeds(accuracies + 0.3, accuracies, images=50)  # 15 of them
    assert comparison.p == pytest.approx(2 * stats.t.sf(15 * math.sqrt(3), 2))
    assert comparison.significant


def test_recipes_that_never_differ_are_not_told_apart():
    accuracies = np.array([0.5, 0.52, 0.56])
    comparison = compare_over_seeds(accuracies, accuracies, images=50)
    assert (comparison.difference, comparison.p) == (0, 1)
    assert comparison.interval[0] < 0 < comparison.interval[1]


def test_an_interval_over_seeds_ends_where_differences_do():
    comparison = compare_over_seeds(np.array([1.0, 0.6]), np.array([0.1, 0.4]), images=10)
    assert comparison.interval == (-1, 1)


@pytest.mark.parametrize(("spread", "expected"), [(0.003, 10), (0.006, 34)])
def test_the_seeds_that_find_a_difference_are_those_of_the_tables_of_power(spread, expected):
    """Effects of 1 and 0.5 standard deviations: 10 and 34 pairs for a power of 80 % (Cohen 1988)."""
    first = 0.9 + spread / np.sqrt(2) * np.array([-1, 1])  # whose standard deviation is `spread`
    assert seeds_to_find(0.003, first, np.full(2, 0.9), images=10_000) == expected


def test_studies_of_so_many_seeds_find_the_difference_in_four_of_five():
    random = np.random.default_rng(0)
    first = 0.9 + 0.006 / np.sqrt(2) * np.array([-1, 1])
    seeds = seeds_to_find(0.003, first, np.full(2, 0.9), images=10_000)
    drawn = random.normal(0.003, 0.006, (4000, seeds))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)


def test_of_seeds_that_never_differ_the_step_of_an_image_counts_and_no_number_is_endless():
    same = np.full(5, 0.9)
    assert seeds_to_find(0.003, same, same, images=1000) == 4
    assert seeds_to_find(1e-9, same, same, images=1000) == 10_000
