"""Trainings as `seeds.read_trainings` returns them, without files."""

from typing import Any

import pandas as pd


def training(run: str, accuracy: float, own: bool = False, code: str = "c1", **changes: Any) -> dict[str, Any]:
    """A row; a change is `section__key=value`."""
    parameters = {"seed": 42, "train.momentum": 0.9, f"{run}.epochs": 5, "train.weight_decay": 5e-4}
    parameters |= {name.replace("__", "."): value for name, value in changes.items()}
    row = {
        "seed": parameters["seed"],
        "run": run,
        "accuracy": accuracy,
        "low": accuracy - 0.05,
        "high": accuracy + 0.04,
    }
    return row | {"own": own, "inputs": {"stages/training": code}, "parameters": parameters}


def trainings(*others: dict[str, Any], **changes: Any) -> pd.DataFrame:
    """A training of each run in the workspace, and others."""
    own = [training(run, accuracy, own=True, **changes) for run, accuracy in (("cnn", 0.9), ("resnet", 0.8))]
    return pd.DataFrame([*own, *others])
