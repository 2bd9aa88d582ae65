import pytest
from markdown_it import MarkdownIt

from stages.reporting import wording


@pytest.mark.parametrize(("value", "text"), [(5e-4, "5e-4"), (1.25e-3, "1.25e-3"), (0, "0"), (0.01, "0.01")])
def test_small_settings_are_written_as_in_the_parameters(value, text):
    assert wording.scientific(value) == text


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0512, "+5.12"), (-0.0075, "−0.75"), (0, "0.00"), (-0.00001, "0.00"), (0.00001, "0.00")]
)
def test_differences_are_points_with_a_sign_unless_they_round_to_zero(difference, text):
    assert wording.points(difference) == text


def test_digits_and_limits():
    assert wording.signed(-0.04054, digits=4) == "−0.0405"
    assert wording.points_range((-0.001, 0.02)) == "−0.10 to +2.00"
    assert wording.percent_range((0.9456, 0.95415)) == "94.56–95.42%"


@pytest.mark.parametrize(("p", "text"), [(0.0123, "p = 0.012"), (1, "p = 1"), (3e-14, "p = 3e-14"), (0, "p < 1e-99")])
def test_a_p_value_is_never_zero(p, text):
    assert wording.p_value(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.96, "1 min 00 s"), (3599, "59 min 59 s"), (90_060, "25 h 01 min")]
)
def test_durations_are_for_people(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "text"), [("abcdefgh", "abcdefgh"), ("abcdefghi", "abcd…ghi"), ("a\nb\x1bm", "a b\\x1bm")]
)
def test_a_long_name_loses_its_middle_and_a_wild_one_its_escape_sequences(name, text):
    assert wording.short(name, 8) == text


@pytest.mark.parametrize(
    ("temperature", "text"),
    [
        (1.2, "Logits divided by 1.20 would calibrate it best: it is too sure of itself."),
        (0.8, "Logits divided by 0.80 would calibrate it best: it is not sure enough of itself."),
        (1.04, "Logits divided by 1.04 would calibrate it best: it is well calibrated as it is."),
        (None, "No temperature calibrates it."),
    ],
)
def test_a_temperature_above_one_means_too_much_confidence(temperature, text):
    assert wording.confidence(temperature) == text


LINKS = "www.evil.example http://x.y https://x.y a@b.c @somebody #123 o/r#4 GH-5 WWW.X.Y :cat:"


def test_markdown_shows_any_name_as_it_is_and_github_finds_nothing_to_link():
    name = f"`a` |*b* _c_ [d](e) <!--<script> ~~f~~ $g$ \\| &amp; {LINKS}"
    (token,) = MarkdownIt("commonmark").enable("table").parseInline(wording.markdown(name))
    assert {child.type for child in token.children} <= {"text", "text_special"}
    shown = "".join(child.content for child in token.children)
    assert shown.replace("\u200b", "") == name
    broken = "www\u200b.evil.example http:\u200b//x.y https:\u200b//x.y a@\u200bb.c @\u200bsomebody #\u200b123"
    assert shown.endswith(f"{broken} o/r#\u200b4 GH\u200b-5 WWW\u200b.X.Y :\u200bcat:")
