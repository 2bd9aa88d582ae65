import io
import warnings

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex
from PIL import Image

from stages.reporting import figures, page
from stages.reporting.findings import CIFAR10

LABELS = ["Simple CNN", "ResNet-18, decay 5e-4", "ResNet-18, decay 1e-4"]


@pytest.fixture
def charts(monkeypatch):
    """Return the charts of these results as the page asks for them, by name, as matplotlib's figures."""
    monkeypatch.setattr(figures, "draw", lambda chart, *args: chart(*args))
    return page.charts


def look(line) -> tuple:
    return line.get_label(), line.get_color(), line.get_marker(), str(line._unscaled_dash_pattern)


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_a_curve_draws_its_own_column_of_each_run_and_the_legend_names_it(experiment, charts, held_out):
    results, held = experiment(held_out=held_out), held_out.capitalize()
    drawn = charts(results)
    for name, column, label, tick in (
        ("accuracy", f"{held_out}_accuracy", f"{held} accuracy", "4.56%"),
        ("loss", f"{held_out}_loss", f"{held} loss", "0.0456"),
        ("generalisation_gap", "generalization_gap", f"Training minus {held_out} accuracy", "4.56 pt"),
    ):
        axes, (legend,) = drawn[name].axes[0], drawn[name].legends
        said = axes.get_xlabel(), axes.get_ylabel(), axes.yaxis.get_major_formatter()(0.0456, 0)
        assert said == ("Epoch", label, tick)
        for line, run in zip(axes.lines, results.runs, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), run.history[["epoch", column]])
            assert line.get_markevery() == [-1]
        looks = [look(line) for line in axes.lines]
        assert [text.get_text() for text in legend.get_texts()] == [label for label, *_ in looks] == LABELS
        assert [look(line)[1:] for line in legend.get_lines()] == [tuple(rest) for _, *rest in looks]
        assert [len(set(part)) for part in zip(*looks, strict=True)] == [3] * 4  # told apart without colours, too
    axes = drawn["loss"].axes[0]
    low, *_, high = np.sort(np.concatenate([axes.get_ylim(), *(line.get_ydata() for line in axes.lines)]))
    assert (axes.get_yscale(), axes.get_ylim()) == ("log", (low, high))  # all epochs
    assert drawn["loss"].get_figheight() == pytest.approx(3.2 + 2 * 0.24)  # two rows of the legend
    resnet, ablation = results.runs[1:]
    column = f"{held_out}_accuracy"
    late = [*resnet.history[column][6:], *ablation.history[column][5:]]  # of 12 and 11 epochs
    margin = 0.06 * (max(late) - min(late))
    axes = figures.curves([resnet, ablation], column, "", str).axes[0]
    assert axes.get_ylim() == pytest.approx((min(late) - margin, max(late) + margin))


def test_accuracies_are_marks_with_intervals_smaller_ones_for_seeds_and_the_known_result(experiment, writer, charts):
    experiment(sorted(CIFAR10), [*range(10)] * 2)
    results = writer.seeds({(seed, "resnet"): np.arange(20) >= seed - 41 for seed in (42, 43, 44)})
    axes = charts(results)["accuracies"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == LABELS
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    for place, run in enumerate(results.runs):
        interval, mark, seeds = axes.lines[3 * place : 3 * place + 3]
        np.testing.assert_allclose(interval.get_xydata(), [(x, place) for x in run.tested.interval])
        np.testing.assert_allclose(mark.get_xydata(), [(run.tested.accuracy, place)])
        np.testing.assert_allclose(seeds.get_xdata(), [0.95, 0.9, 0.85] if place == 1 else [np.nan] * 3)
        assert seeds.get_markersize() < mark.get_markersize()
        assert {line.get_color() for line in (interval, mark, seeds)} == {f"C{place}"}
    assert [mark.get_text() for mark in axes.texts] == ["80.00%", "90.00%", "85.00%", "known: 95%"]
    assert axes.lines[-1].get_xdata() == [0.95, 0.95]
    assert [axes.xaxis.get_major_formatter()(value, 0) for value in (0.875, 1, 1.1)] == ["87.5%", "100%", ""]


def test_f1_of_each_class_is_a_mark_for_each_run_on_an_axis_that_shows_differences(experiment, charts):
    axes = charts(experiment(classes=("$x^$ a", "c" + "d" * 39)))["per_class"].axes[0]
    scores, heights = np.array([line.get_xydata() for line in axes.lines]).transpose(2, 0, 1)
    np.testing.assert_allclose(scores, [[7 / 9, 9 / 11], [8 / 9, 10 / 11], [16 / 19, 6 / 7]], rtol=1e-6)
    np.testing.assert_allclose(heights.mean(axis=0), [0, 1], atol=1e-12)
    assert (np.diff(heights, axis=0) > 0.1).all()
    assert axes.get_xlim()[0] > 0.7
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$x^$ a", f"c{'d' * 14}…{'d' * 14}"]
    assert [look(line)[:2] for line in axes.lines] == [(label, f"C{n}") for n, label in enumerate(LABELS)]


def test_dots_of_a_reliability_diagram_are_bins_in_the_colour_of_the_run(toys, charts):
    all_axes = [charts(toys)[f"reliability_{run.name}"].axes[0] for run in toys.runs]
    dots, lines = [axes.collections[-1] for axes in all_axes], all_axes[1].collections[0].get_segments()
    np.testing.assert_allclose(lines, [[[x, x], [x, y]] for x, y in dots[1].get_offsets()])  # to the diagonal
    np.testing.assert_allclose(all_axes[1].lines[0].get_xydata(), [[0, 0], [1, 1]])
    both = [(axis.get_label_text(), *axis.get_view_interval()) for axis in (all_axes[1].xaxis, all_axes[1].yaxis)]
    assert both == [("Confidence", 0, 1.02), ("Accuracy", 0, 1.02)]
    assert [to_hex(of.get_facecolor()[0]) for of in dots] == [to_hex(f"C{number}") for number in range(3)]
    np.testing.assert_allclose(dots[1].get_offsets(), [[0.6, 0], [0.92, 1], [0.958, 0]])
    np.testing.assert_allclose(dots[1].get_sizes(), [10 + 190 / 18, 200, 10 + 190 / 18])


def test_charts_are_wide_enough_to_read_and_their_bytes_depend_on_the_numbers_alone(experiment):
    runs = experiment(classes=("$x^$ a", "b")).runs
    first = figures.draw(figures.per_class, runs)
    user = {"text.usetex": True, "axes.facecolor": "red", "savefig.dpi": 30, "svg.fonttype": "none"}
    with warnings.catch_warnings(), rc_context(user):
        warnings.simplefilter("error")
        assert figures.draw(figures.per_class, runs) == first
    assert all(colour.encode() in first[0] for colour in figures.COLOURS[:3])
    assert Image.open(io.BytesIO(first[1])).width == 1000
