import numpy as np
import pandas as pd

from stages.reporting import tables


def rows(frame: pd.DataFrame) -> list[list]:
    return [list(frame.columns), *frame.to_numpy().tolist()]


def test_the_table_of_runs_has_each_run_s_own_figures(experiment, results):
    experiment()
    head, *runs = rows(tables.run_table(results().runs))
    assert head[:7] == ["Run", "Model", "Weight decay", "Parameters", "Epochs", "Test accuracy", "95% interval"]
    assert head[7:] == ["Test, last epoch", "Gap, points", "Time"]
    assert runs == [  # with Wilson's intervals of 16, 18 and 17 of 20
        ["cnn", "Simple CNN", "5e-4", "391,946", "6", "80.00%", "58.40–91.93%", "79.00%", "+2.00", "59.9 s"],
        ["resnet", "ResNet-18", "5e-4", "392,946", "12", "90.00%", "69.90–97.21%", "88.00%", "+4.56", "1 h 02 min"],
        [
            "resnet_ablation",
            "ResNet-18",
            "1e-4",
            "393,946",
            "11",
            "85.00%",
            "63.96–94.76%",
            "82.00%",
            "+7.00",
            "1 min 15 s",
        ],
    ]


def test_the_table_of_a_pair_has_the_first_run_first_and_what_it_gains(experiment, results):
    experiment(("cat", "dog", "cow"))
    pair = results().pairs[1]
    first, second = pair.first.tested, pair.second.tested
    # Confidence 0.92 where the first is right (18), 0.958 and 0.6 where it is wrong; 0.94 (17), 0.948, 0.774 and 0.6
    losses = [-(18 * np.log(0.92) + np.log(0.021 * 0.2)) / 20, -(17 * np.log(0.94) + np.log(0.026 * 0.113 * 0.2)) / 20]
    # Each in a bin of its own, but 0.948 beside the 17 of 0.94
    ece = [(18 * 0.08 + 0.958 + 0.6) / 20, (17 - 17 * 0.94 - 0.948 + 0.774 + 0.6) / 20]
    assert rows(tables.pair_table(pair, "validation")) == [
        ["Figure", "ResNet-18, decay 5e-4", "ResNet-18, decay 1e-4", "Difference"],
        ["Test accuracy", "90.00%", "85.00%", "+5.00"],
        ["95% interval", "69.90–97.21%", "63.96–94.76%", ""],
        ["Validation accuracy, last epoch", "88.00%", "82.00%", "+6.00"],
        ["Best epoch", "11", "10", ""],
        ["Top-2 accuracy", f"{first.top2:.2%}", f"{second.top2:.2%}", tables.points(first.top2 - second.top2)],
        ["Loss", f"{losses[0]:.4f}", f"{losses[1]:.4f}", f"−{losses[1] - losses[0]:.4f}"],
        ["Generalisation gap, points", "+4.56", "+7.00", "−2.44"],
        ["Calibration error", f"{ece[0]:.2%}", f"{ece[1]:.2%}", f"+{100 * (ece[0] - ece[1]):.2f}"],
        ["By chance, if calibrated", f"{first.ece_expected:.2%}", f"{second.ece_expected:.2%}", ""],
        ["Calibrating temperature", f"{first.temperature:.2f}", f"{second.temperature:.2f}", ""],
    ]
    assert len({first.ece_expected, second.ece_expected, first.temperature, second.temperature}) == 4


def test_the_comparison_fits_a_terminal_of_80_columns(experiment, results, writer):
    run = writer.runs["resnet"] | {"epochs": 1000, "gap": -0.5, "seconds": 360_060.0}
    experiment(runs={"r" * 64: run}, pairs={})
    header, line = tables.summary(results().runs).splitlines()
    assert max(len(header), len(line)) <= 80
    assert header.split() == ["Run", "Parameters", "Epochs", "Accuracy", "Gap,", "pt", "Time"]
    assert line.split(maxsplit=5)[1:] == ["391,946", "1000", "90.00%", "−50.00", "100 h 01 min"]


def test_scores_confusions_and_machines_stand_each_in_their_column(experiment, results):
    experiment()
    # resnet takes 2 of 10 cats for dogs: 8 of 8 and 8 of 10 are cats, 10 of 12 and 10 of 10 dogs
    assert rows(tables.class_table(results().runs[:2], [0, 1])) == [
        ["Class", "Run", "Images", "Precision", "Recall", "F1"],
        ["cat", "cnn", "10", "87.50%", "70.00%", "77.78%"],
        ["cat", "resnet", "10", "100.00%", "80.00%", "88.89%"],
        ["dog", "cnn", "10", "75.00%", "90.00%", "81.82%"],
        ["dog", "resnet", "10", "83.33%", "100.00%", "90.91%"],
    ]
    head, *confused = rows(tables.confused(results().runs[0]))
    assert head == ["Class", "Taken for", "Images", "Share of the class"]
    assert confused == [["cat", "dog", "3", "30.0%"], ["dog", "cat", "1", "10.0%"]]
    assert rows(tables.machine_table(results().runs))[::2] == [
        [
            "Run",
            "Images per second",
            "Device",
            "Instruction set",
            "Threads",
            "Precision",
            "Compiled",
            "Torch",
            "Python",
        ],
        ["resnet", "2,234", "GPU 1", "AVX2", 3, "bf16", True, "2.91", "3.91"],
    ]


def test_of_many_classes_the_ten_worst_and_the_ten_best_are_named(experiment, results, writer):
    for count, expected in ((31, 20), (30, 30)):
        run = writer.runs["resnet"] | {"wrong": [*range(0, 10 * count, count)]}  # class 0, always taken for class 1
        experiment([f"class {n}" for n in range(count)], [*range(count)] * 10, {"only": run}, {})
        assert tables.extremes(results().runs)[:2] == [0, 1]
        assert len(tables.extremes(results().runs)) == expected


def test_seeds_have_mean_and_spread_and_the_seeds_that_would_find_the_margin(experiment, writer, results):
    experiment()
    wrong = {"cnn": (4, 5, 3, 4), "resnet": (2, 2, 3, 1), "resnet_ablation": (3, 3, 3)}
    writer.seeds({(s, run): np.arange(20) >= n for run, many in wrong.items() for s, n in enumerate(many)})
    assert rows(tables.seed_table(results())) == [
        ["Run", "Seeds", "Mean", "Standard deviation", "Lowest", "Highest"],
        ["cnn", "4", "80.00%", "4.08%", "75.00%", "85.00%"],  # √(0.005 / 3)
        ["resnet", "4", "90.00%", "4.08%", "85.00%", "95.00%"],
        ["resnet_ablation", "3", "85.00%", "0.00%", "85.00%", "85.00%"],
    ]
    head, *found = rows(tables.recipe_table(results()))
    assert head == ["First minus second, points", "Mean", "95% interval", "p", "Adjusted p", "Seeds to find 0.3 points"]
    assert [row[:2] for row in found] == [
        ["ResNet-18, decay 5e-4 and Simple CNN", "+10.00"],
        ["ResNet-18, decay 5e-4 and ResNet-18, decay 1e-4", "+3.33"],
    ]
    for row, pair in zip(found, results().pairs, strict=True):
        count, low, high = tables.seeds_needed(pair.recipes, 0.003)
        p = f"{pair.recipes.p:.2g}", f"{pair.p:.2g}"
        assert row[2:] == [tables.points_range(pair.recipes.interval), *p, f"{count:,} ({low:,} to {high:,})"]
