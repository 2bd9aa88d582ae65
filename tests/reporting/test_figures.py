import io
import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_hex
from PIL import Image

from stages.reporting import drawing, figures


@pytest.fixture
def runs(experiment, results):
    experiment()
    return results().runs


def lines(figure) -> dict[str, list[np.ndarray]]:
    """What each run's colour draws over its epochs."""
    found = {}
    for line in figure.axes[0].lines:
        found.setdefault(line.get_color(), []).append(line.get_ydata())
    return found


@pytest.mark.parametrize(
    ("draw", "columns"),
    [
        (figures.accuracy, ["test_accuracy"]),
        (figures.loss, ["train_loss", "test_loss"]),
        (figures.gap, ["generalization_gap"]),
        (figures.learning_rate, ["learning_rate"]),
    ],
)
def test_a_curve_draws_its_own_column_of_each_run(runs, draw, columns):
    drawn = lines(draw(runs))
    for number, run in enumerate(runs):
        for values, column in zip(drawn[f"C{number}"], columns, strict=True):
            np.testing.assert_array_equal(values, run.history[column])


def test_the_axis_fits_the_second_half_of_the_epochs(runs):
    low, high = figures.loss(runs[1:2]).axes[0].get_ylim()  # 1.5 / epoch and 1 / epoch, epochs 51 to 100
    assert 1 / 100 - 0.002 < low < 1 / 100
    assert 1.5 / 51 < high < 1.5 / 51 + 0.002


def test_the_axis_of_a_short_training_holds_all_of_it(experiment, results):
    experiment(runs={"cnn": ("Simple CNN", 10, 5e-4, 10, 0.02, 5, [0])}, comparisons={})
    low, high = figures.loss(results().runs).axes[0].get_ylim()  # 1.5 / epoch and 1 / epoch, epochs 1 to 10
    assert low < 0.1
    assert 1.5 < high < 1.6


def test_each_line_ends_in_the_mark_that_the_legend_names(runs):
    figure = figures.accuracy(runs)
    drawn = [(line.get_color(), line.get_marker(), line.get_markevery()) for line in figure.axes[0].lines]
    legend = [(entry.get_color(), entry.get_marker(), [-1]) for entry in figure.legends[0].get_lines()]
    assert drawn == legend
    assert len({(colour, marker) for colour, marker, _ in drawn}) == 3


def test_bars_are_accuracies_with_their_intervals(runs):
    axes = figures.accuracies(runs).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.8, 0.9, 0.85])
    (errors,) = (part for part in axes.collections if part.get_segments())
    ends = [sorted(x for x, _ in segment) for segment in errors.get_segments()]
    np.testing.assert_allclose(ends, [[0.7, 0.82], [0.8, 0.92], [0.75, 0.87]])


def test_bars_of_a_class_are_f1(runs):
    axes = figures.per_class(runs).axes[0]
    assert [bar.get_width() for bar in axes.patches[2:4]] == pytest.approx([8 / 9, 10 / 11])  # resnet's cats and dogs
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_dots_of_a_reliability_diagram_are_bins(runs):
    dots = figures.reliability(runs[1], 1).axes[0].collections[-1].get_offsets()
    # wrong answers of confidence 0.79 and 0.8, on both sides of a limit of bins, and 18 right ones of 0.9
    np.testing.assert_allclose(dots, [[0.79, 0], [0.8, 0], [0.9, 1]])


def test_a_study_draws_each_seed_and_the_means(study, results):
    found = results()
    axes = figures.seeds(found.runs, found.study["accuracy"]).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines][1] == [0.8, 0.88, 0.85]  # seed 43
    assert "89.50%" in [text.get_text() for text in axes.texts]


def test_names_of_classes_are_drawn_as_they_are_and_shortened(experiment, results):
    experiment(classes=("$x^$ a", "d" * 40))
    figure = figures.per_class(results().runs)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["$x^$ a", "d" * 12 + "…" + "d" * 11]
    assert drawing.chart(figures.per_class, results().runs, form="png")


def test_light_and_dark_charts_differ_in_colours_and_the_same_numbers_give_the_same_bytes(runs):
    light, dark, again = (drawing.chart(figures.gap, runs, form="svg", dark=on) for on in (False, True, False))
    assert light == again
    for content, theme, colours in ((light, drawing.PAPER, drawing.LIGHT), (dark, drawing.NIGHT, drawing.DARK)):
        for colour in (theme["text"], theme["page"], *colours[:3]):
            assert to_hex(colour).encode() in content


def test_pictures_are_wide_enough_to_read(runs):
    with Image.open(io.BytesIO(drawing.chart(figures.loss, runs, form="png"))) as image:
        assert image.width == 1000
        assert len(image.convert("RGB").getcolors(maxcolors=2**20)) > 50


def letters(font: str) -> set[str]:
    path = font_manager.findfont(font_manager.FontProperties(family=[font]))
    return {chr(code) for code in font_manager.get_font(path).get_charmap()}


def test_letters_that_no_font_has_are_told_and_draw_without_a_warning(experiment, results):
    fonts = [font for font in font_manager.get_font_names() if not font.startswith("Last Resort")]
    everything = set().union(*map(letters, fonts))
    letter = next(letter for letter in "𒀀𓀀𐌀猫𛀂" if letter not in everything)
    assert drawing.find_fonts([f"a{letter}", f"{letter}b"]) == ([], letter)
    experiment(classes=(letter, "dog"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing.chart(figures.per_class, results().runs, form="png")


def test_letters_that_the_usual_font_lacks_come_from_another_that_is_installed(experiment, results):
    letter = min(filter(str.isprintable, letters("STIXGeneral") - letters(drawing.FONT)))
    fonts, lacking = drawing.find_fonts([f"a{letter}"])
    assert lacking == ""
    assert letter in letters(fonts[0])
    experiment(classes=(letter, "dog"))
    with_font, without = (drawing.chart(figures.per_class, results().runs, form="svg", fonts=f) for f in (fonts, []))
    assert with_font != without
