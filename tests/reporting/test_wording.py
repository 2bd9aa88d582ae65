import pytest

from stages.evaluation.significance import Comparison
from stages.reporting import wording


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


@pytest.mark.parametrize(("p", "text"), [(0.0123, "p = 0.012"), (1, "p = 1"), (3e-14, "p = 3e-14"), (0, "p < 1e-99")])
def test_a_p_value_is_never_zero(p, text):
    assert wording.p_value(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 00 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90_060, "25 h 01 min"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "text"), [("abcdefgh", "abcdefgh"), ("abcdefghi", "abcd…ghi"), ("a\nb\x1b[1m", "a b\\x1b[1m")]
)
def test_a_long_name_loses_its_middle_and_a_wild_one_its_escape_sequences(name, text):
    assert wording.short(name, 8 if "…" in text else 10) == text


@pytest.mark.parametrize(
    ("subject", "names", "difference", "p", "text"),
    [
        ("", ("ResNet-18", "Simple CNN"), 0.05, 0.0499, "ResNet-18 is better than Simple CNN"),
        ("", ("ResNet-18", "Simple CNN"), -0.05, 0.01, "Simple CNN is better than ResNet-18"),
        ("weight decay", ("5e-4", "1e-4"), 0.01, 0.01, "Weight decay 5e-4 is better than 1e-4"),
        (
            "weight decay",
            ("5e-4", "1e-4"),
            1,
            0.05,
            "Weight decay 5e-4 against 1e-4: no difference that 9 tests can show",
        ),
    ],
)
def test_a_verdict_in_words(subject, names, difference, p, text):
    comparison = Comparison(difference, (difference, difference), p)
    assert wording.verdict(subject, names, comparison, "9 tests") == text


@pytest.mark.parametrize(
    ("temperature", "text"),
    [
        (1.2, "Logits divided by 1.20 would calibrate it best: it is too sure of itself."),
        (0.8, "Logits divided by 0.80 would calibrate it best: it is not sure enough of itself."),
        (1.04, "Logits divided by 1.04 would calibrate it best: it is well calibrated as it is."),
        (None, "Every image is right, so no temperature is optimal."),
    ],
)
def test_a_temperature_above_one_means_too_much_confidence(temperature, text):
    assert wording.confidence(temperature) == text
