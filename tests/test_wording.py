import pytest

from stages import wording
from stages.core.significance import Comparison


@pytest.mark.parametrize(
    ("value", "text"), [(5e-4, "5e-4"), (1e-5, "1e-5"), (1.25e-3, "1.25e-3"), (0, "0"), (0.01, "0.01"), (0.5, "0.5")]
)
def test_small_settings_are_written_as_in_the_parameters(value, text):
    assert wording.scientific(value) == text


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0512, "+5.12"), (-0.0075, "−0.75"), (0, "0.00"), (-0.00001, "0.00"), (0.00001, "0.00")]
)
def test_differences_are_points_with_a_sign(difference, text):
    assert wording.points(difference) == text


@pytest.mark.parametrize(("difference", "text"), [(0.5, "+0.5000"), (-0.04054, "−0.0405"), (-0.00004, "0.0000")])
def test_differences_have_as_many_digits_as_asked_for(difference, text):
    assert wording.signed(difference, digits=4) == text


def test_limits_of_an_interval():
    assert wording.points_range((-0.001, 0.02)) == "−0.10 to +2.00"
    assert wording.percent_range((0.9456, 0.95415)) == "94.56–95.42%"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90_060, "25 h 01 min"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("subject", "names", "difference", "p", "text"),
    [
        ("", ("ResNet-18", "Simple CNN"), 0.05, 0.0499, "ResNet-18 is better than Simple CNN"),
        ("", ("ResNet-18", "Simple CNN"), -0.05, 0.01, "Simple CNN is better than ResNet-18"),
        ("weight decay", ("5e-4", "1e-4"), 0.01, 0.01, "Weight decay 5e-4 is better than 1e-4"),
        (
            "weight decay",
            ("5e-4", "1e-4"),
            0.01,
            0.05,
            "Weight decay 5e-4 against 1e-4: no difference that 9 tests can show",
        ),
        ("weight decay", ("5e-4", "5e-4"), 0, 1, "Weight decay 5e-4 in both: nothing to compare"),
    ],
)
def test_a_verdict_in_words(subject, names, difference, p, text):
    comparison = Comparison(difference, (difference, difference), p)
    assert wording.verdict(subject, names, comparison, "9 tests") == text
