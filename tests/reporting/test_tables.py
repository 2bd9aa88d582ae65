from pathlib import Path

import numpy as np

from stages.evaluation.metrics import confusion
from stages.reporting import tables


def rows(frame) -> list[list[str]]:
    return [list(frame.columns), *frame.to_numpy().tolist()]


def test_the_table_of_runs_holds_the_figures_of_the_files(experiment, results):
    experiment()
    found = rows(tables.run_table(results().runs, "best"))
    assert found[2] == [
        *("resnet", "ResNet-18", "5e-4", "11,173,962", "100", "90.00%", "80.00–92.00%", "89.00%", "+4.56", "1 h 02 min")
    ]
    assert found[0][-3:] == ["Last epoch", "Gap, points", "Time"]


def test_the_table_of_a_pair_has_the_first_run_first_and_what_it_gains(experiment, results):
    experiment()
    found = rows(tables.pair_table(results().pairs[1], "best"))
    for row in (
        ["Figure", "5e-4", "1e-4", "Difference"],
        ["Test accuracy", "90.00%", "85.00%", "+5.00"],
        ["95% interval", "80.00–92.00%", "75.00–87.00%", ""],
        ["Test accuracy, last epoch", "89.00%", "84.00%", "+5.00"],
        ["Generalisation gap, points", "+4.56", "+7.00", "−2.44"],
        ["Loss", "0.4321", "0.4321", "0.0000"],
        ["Calibrating temperature", "1.50", "1.50", ""],
    ):
        assert row in found


def test_the_comparison_fits_a_terminal_of_80_columns(experiment, results):
    experiment(runs={"r" * 64: ("ResNet-18", 11_173_962, 5e-4, 1000, -0.5, 360_060, [7, 0])}, comparisons={})
    text = tables.summary(results().runs)
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("11,173,962", "1000", "90.00%", "−50.00", "100 h 01 min"):
        assert figure in text


def test_precision_recall_and_f1_stand_each_in_their_column(experiment, results):
    experiment()
    # resnet takes 2 of 10 cats for dogs: 8 of 8 and 8 of 10 are cats, 10 of 12 and 10 of 10 dogs.
    found = rows(tables.class_table(results().runs, range(2)))
    assert found[0] == ["Class", "Run", "Images", "Precision", "Recall", "F1"]
    assert ["cat", "resnet", "10", "100.00%", "80.00%", "88.89%"] in found
    assert ["dog", "resnet", "10", "83.33%", "100.00%", "90.91%"] in found


def test_a_confusion_matrix_counts_actual_classes_in_rows(experiment, results):
    experiment(classes=("cat", "dog", "cow"))
    cnn = results().runs[0]  # cats 0, 3 and 4 taken for dogs, dog 11 for a cow
    assert confusion(cnn.predictions.actual, cnn.predictions.predicted, ["cat", "dog", "cow"]).to_numpy().tolist() == [
        [7, 3, 0],
        [0, 9, 1],
        [0, 0, 0],
    ]


def test_the_most_confused_classes_come_first_with_their_share(experiment, results):
    experiment(classes=("cat", "dog", "cow"))
    found = rows(tables.confused(results().runs[0]))
    assert found[1:] == [["cat", "dog", "3", "30.0%"], ["dog", "cow", "1", "10.0%"]]


def test_of_many_classes_the_ten_worst_and_the_ten_best_are_named(experiment, results):
    count = 31
    wrong = list(range(0, 10 * count, count))  # class 0, always taken for class 1
    runs = {"only": ("ResNet-18", 10, 5e-4, 1, 0.01, 3, wrong)}
    names = [f"class {number}" for number in range(count)]
    experiment(names, list(np.tile(range(count), 10)), runs, {})
    found = tables.extremes(results().runs)
    assert len(found) == 20
    assert found[:2] == [0, 1]
    experiment(names[:30], list(np.tile(range(30), 10)), {"only": (*runs["only"][:-1], [0])}, {})
    assert tables.extremes(results().runs) == list(range(30))


def test_a_study_gives_mean_and_spread_over_the_seeds(study, results):
    found = results()
    table = tables.study_tables(found.study, found)
    # 0.9, 0.88, 0.9, 0.9: mean 0.895, standard deviation 0.01
    assert ["resnet", "89.50%", "1.00", "88.00%", "90.00%", "88.50%"] in rows(table["runs"])
    assert rows(table["pairs"])[2][:2] == ["Weight decay 5e-4 minus 1e-4", "+4.00"]
    assert table["seeds"] == [42, 43, 44, 45]


def test_a_pair_of_one_recipe_is_left_out_of_a_study(experiment, results):
    run = ("ResNet-18", 10, 5e-4, 2, 0.01, 3, [0])
    experiment(runs={"a": run, "b": run}, comparisons={"x": (["a", "b"], 0.0, [0.0, 0.0], 1.0, [0, 0])})
    rows = "42,a,0.95,0.94\n42,b,0.95,0.94\n43,a,0.9,0.8\n43,b,0.9,0.8\n"
    Path("plots/seeds.csv").write_text(f"seed,run,accuracy,last_accuracy\n{rows}")
    found = results()
    assert tables.study_tables(found.study, found)["pairs"].empty
