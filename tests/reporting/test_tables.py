from types import SimpleNamespace

import numpy as np
import pandas as pd

from stages.reporting import tables

RESNET = "ResNet-18, decay 5e-4"


def rows(frame: pd.DataFrame) -> list[str]:
    return [" | ".join(map(str, row)) for row in [frame.columns, *frame.to_numpy()]]


def test_the_tables_of_runs_have_each_run_s_own_figures(experiment, writer):
    runs = writer.runs | {"resnet": writer.runs["resnet"] | {"keep": "last"}}
    results = experiment(("cat", "dog", "cow"), runs=runs)
    head = "Run | Model | Weight decay | Parameters | Epochs | Test accuracy | 95% interval"
    assert rows(tables.run_table(results.runs, "validation")) == [
        f"{head} | Validation, last epoch | Gap, points | Time",  # and Wilson's intervals of 16, 18 and 17 of 20
        "cnn | Simple CNN | 5e-4 | 391,946 | 6 | 80.00% | 58.40–91.93% | 79.00% | +2.00 | 59.9 s",
        "resnet | ResNet-18 | 5e-4 | 392,946 | 12 | 90.00% | 69.90–97.21% | 88.00% | +4.56 | 1 h 02 min",
        "resnet_ablation | ResNet-18 | 1e-4 | 393,946 | 11 | 85.00% | 63.96–94.76% | 82.00% | +7.00 | 1 min 15 s",
    ]
    assert tables.run_table(results.runs).columns[7] == "Test, last epoch"
    # Confidence 0.92 where resnet is right (18), 0.958 and 0.6 where it is wrong, each in a bin of its own:
    # loss (18 ln 0.92 + ln 0.021 + ln 0.2) / −20, calibration error (18 · 0.08 + 0.958 + 0.6) / 20
    head = "Run | Best epoch | Top-2 accuracy | Loss | Calibration error | By chance, if calibrated"
    assert rows(tables.expert_table(results.runs)) == [
        f"{head} | Calibrating temperature",
        "cnn | 5 | 85.00% | 0.5983 | 23.68% | 10.96% | 1.23",
        "resnet | 11 | 90.00% | 0.3487 | 14.99% | 7.55% | 0.99",
        "resnet_ablation | 10 | 90.00% | 0.4246 | 7.23% | 7.97% | 1.15",
    ]


def test_scores_confusions_and_machines_stand_each_in_their_column(toys):
    # resnet takes 2 of 10 cats for dogs: 8 of 8 and 8 of 10 are cats, 10 of 12 and 10 of 10 dogs
    assert rows(tables.class_table(toys.runs[:2], [0, 1])) == [
        "Class | Run | Images | Precision | Recall | F1",
        "cat | cnn | 10 | 87.50% | 70.00% | 77.78%",
        "cat | resnet | 10 | 100.00% | 80.00% | 88.89%",
        "dog | cnn | 10 | 75.00% | 90.00% | 81.82%",
        "dog | resnet | 10 | 83.33% | 100.00% | 90.91%",
    ]
    assert rows(tables.confused(toys.runs[0])) == ["Class | Taken for | Images", "cat | dog | 3", "dog | cat | 1"]
    assert rows(tables.machine_table(toys.runs))[::2] == [
        "Run | Images per second | Device | Instruction set | Threads | Precision | Compiled | Torch | Python",
        "resnet | 2,234 | GPU 1 | AVX2 | 3 | bf16 | True | 2.91 | 3.91",
    ]


def test_of_many_classes_the_worst_and_best_by_mean_f1_are_named_and_of_confusions_the_most_frequent(toys, monkeypatch):
    scores = ([0.5, 0.9, 0.3, 0.8], [0.7, 0.9, 0.3, 0.4])
    runs = [SimpleNamespace(per_class=pd.DataFrame({"f1": f1, "recall": f1[::-1]})) for f1 in scores]
    assert tables.extremes(runs) == [0, 1, 2, 3]
    monkeypatch.setattr(tables, "MANY_CLASSES", 3)
    monkeypatch.setattr(tables, "NAMED", 1)
    assert tables.extremes(runs) == [2, 1]
    assert rows(tables.confused(toys.runs[0]))[1:] == ["cat | dog | 3"]


def test_seeds_have_mean_and_spread_and_the_seeds_that_would_find_the_margin(experiment, writer):
    experiment()
    wrong = {"cnn": (4, 5, 3, 4), "resnet": (2, 2, 3, 1), "resnet_ablation": (3, 3, 3)}
    results = writer.seeds({(s, run): np.arange(20) >= n for run, many in wrong.items() for s, n in enumerate(many)})
    assert rows(tables.seed_table(results)) == [
        "Run | Seeds | Mean | Standard deviation | Lowest | Highest",
        "cnn | 4 | 80.00% | 4.08% | 75.00% | 85.00%",  # √(0.005 / 3)
        "resnet | 4 | 90.00% | 4.08% | 85.00% | 95.00%",
        "resnet_ablation | 3 | 85.00% | 0.00% | 85.00% | 85.00%",
    ]
    assert rows(tables.recipe_table(results)) == [
        "First minus second, points | Mean | 95% interval | p | Adjusted p | Seeds to find 0.3 points",
        f"{RESNET} and Simple CNN | +10.00 | −8.86 to +28.86 | 0.25 | 0.51 | 4,363 (1,402 to 10,000)",
        f"{RESNET} and ResNet-18, decay 1e-4 | +3.33 | −14.62 to +21.29 | 0.69 | 0.69 | 2,183 (593 to 10,000)",
    ]
