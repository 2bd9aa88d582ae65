import numpy as np
import pandas as pd
import pytest

from stages.reporting import tables


def rows(frame: pd.DataFrame) -> list[list]:
    return [list(frame.columns), *frame.to_numpy().tolist()]


def split(*lines: str) -> list[list[str]]:
    return [line.split(" | ") for line in lines]


def test_the_table_of_runs_has_each_run_s_own_figures(toys):
    head = "Run | Model | Weight decay | Parameters | Epochs | Test accuracy | 95% interval"
    assert rows(tables.run_table(toys.runs, "validation")) == split(
        f"{head} | Validation, last epoch | Gap, points | Time",  # and Wilson's intervals of 16, 18 and 17 of 20
        "cnn | Simple CNN | 5e-4 | 391,946 | 6 | 80.00% | 58.40–91.93% | 79.00% | +2.00 | 59.9 s",
        "resnet | ResNet-18 | 5e-4 | 392,946 | 12 | 90.00% | 69.90–97.21% | 88.00% | +4.56 | 1 h 02 min",
        "resnet_ablation | ResNet-18 | 1e-4 | 393,946 | 11 | 85.00% | 63.96–94.76% | 82.00% | +7.00 | 1 min 15 s",
    )
    assert tables.run_table(toys.runs).columns[7] == "Test, last epoch"


def test_the_table_for_experts_has_each_run_s_own_figures(experiment, results):
    experiment(("cat", "dog", "cow"))
    head, _, *found = rows(tables.expert_table(results().runs))
    first, second = (run.tested for run in results().runs[1:])
    # Confidence 0.92 where the first is right (18), 0.958 and 0.6 where it is wrong; 0.94 (17), 0.948, 0.774 and 0.6
    losses = [-(18 * np.log(0.92) + np.log(0.021 * 0.2)) / 20, -(17 * np.log(0.94) + np.log(0.026 * 0.113 * 0.2)) / 20]
    # Each in a bin of its own, but 0.948 beside the 17 of 0.94
    ece = [(18 * 0.08 + 0.958 + 0.6) / 20, (17 - 17 * 0.94 - 0.948 + 0.774 + 0.6) / 20]
    assert head[:5] == ["Run", "Best epoch", "Top-2 accuracy", "Loss", "Calibration error"]
    assert head[5:] == ["By chance, if calibrated", "Calibrating temperature"]
    for row, name, epoch, run, loss, error in zip(
        found, ("resnet", "resnet_ablation"), ("11", "10"), (first, second), losses, ece, strict=True
    ):
        measured = [
            f"{run.top2:.2%}",
            f"{loss:.4f}",
            f"{error:.2%}",
            f"{run.ece_expected:.2%}",
            f"{run.temperature:.2f}",
        ]
        assert row == [name, epoch, *measured]
    assert len({first.ece_expected, second.ece_expected, first.temperature, second.temperature}) == 4


def test_the_comparison_fits_a_terminal_of_80_columns(experiment, results, writer):
    run = writer.runs["resnet"] | {"epochs": 1000, "gap": -0.5, "seconds": 360_060.0}
    experiment(runs={"r" * 64: run}, pairs={})
    header, line = tables.summary(results().runs).splitlines()
    assert max(len(header), len(line)) <= 80
    assert header.split() == ["Run", "Parameters", "Epochs", "Accuracy", "Gap,", "pt", "Time"]
    assert line.split(maxsplit=5)[1:] == ["391,946", "1000", "90.00%", "−50.00", "100 h 01 min"]


def test_scores_confusions_and_machines_stand_each_in_their_column(toys):
    # resnet takes 2 of 10 cats for dogs: 8 of 8 and 8 of 10 are cats, 10 of 12 and 10 of 10 dogs
    assert rows(tables.class_table(toys.runs[:2], [0, 1])) == split(
        "Class | Run | Images | Precision | Recall | F1",
        "cat | cnn | 10 | 87.50% | 70.00% | 77.78%",
        "cat | resnet | 10 | 100.00% | 80.00% | 88.89%",
        "dog | cnn | 10 | 75.00% | 90.00% | 81.82%",
        "dog | resnet | 10 | 83.33% | 100.00% | 90.91%",
    )
    confused = split("Class | Taken for | Images", "cat | dog | 3", "dog | cat | 1")
    assert rows(tables.confused(toys.runs[0])) == confused
    head, _, resnet, _ = rows(tables.machine_table(toys.runs))
    text = "Run | Images per second | Device | Instruction set | Threads | Precision | Compiled | Torch | Python"
    assert head == text.split(" | ")
    assert resnet == ["resnet", "2,234", "GPU 1", "AVX2", 3, "bf16", True, "2.91", "3.91"]


@pytest.mark.parametrize(("count", "named"), [(21, [0, 1, *range(2, 10), *range(11, 21)]), (20, [*range(20)])])
def test_of_many_classes_the_ten_worst_and_the_ten_best_are_named(experiment, results, writer, count, named):
    run = writer.runs["resnet"] | {"wrong": [*range(0, 10 * count, count)]}  # class 0, always taken for class 1
    experiment([f"class {n}" for n in range(count)], [*range(count)] * 10, {"only": run}, {})
    assert tables.extremes(results().runs) == named


def test_seeds_have_mean_and_spread_and_the_seeds_that_would_find_the_margin(experiment, writer, results):
    experiment()
    wrong = {"cnn": (4, 5, 3, 4), "resnet": (2, 2, 3, 1), "resnet_ablation": (3, 3, 3)}
    writer.seeds({(s, run): np.arange(20) >= n for run, many in wrong.items() for s, n in enumerate(many)})
    assert rows(tables.seed_table(results())) == split(
        "Run | Seeds | Mean | Standard deviation | Lowest | Highest",
        "cnn | 4 | 80.00% | 4.08% | 75.00% | 85.00%",  # √(0.005 / 3)
        "resnet | 4 | 90.00% | 4.08% | 85.00% | 95.00%",
        "resnet_ablation | 3 | 85.00% | 0.00% | 85.00% | 85.00%",
    )
    head, *found = rows(tables.recipe_table(results()))
    assert head == ["First minus second, points", "Mean", "95% interval", "p", "Adjusted p", "Seeds to find 0.3 points"]
    for row, pair in zip(found, results().pairs, strict=True):
        count, low, high = tables.seeds_needed(pair.recipes, 0.003)
        low_points, high_points = (f"{100 * limit:+.2f}".replace("-", "−") for limit in pair.recipes.interval)
        named = [f"{pair.first.label} and {pair.second.label}", {"cnn": "+10.00"}.get(pair.second.name, "+3.33")]
        ps = [f"{pair.recipes.p:.2g}", f"{pair.p:.2g}"]
        assert row == [*named, f"{low_points} to {high_points}", *ps, f"{count:,} ({low:,} to {high:,})"]
        assert count > 3
