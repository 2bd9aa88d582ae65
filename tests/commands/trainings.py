"""Trainings as the commands read them, without files."""

from types import SimpleNamespace
from typing import Any

from stages.commands.seeds import Training

OWN = {"cnn": 0.9, "resnet": 0.8}
INPUTS = {"data": "d1", "stages/training": "c1"}


def training(
    run: str, accuracy: float, inputs: dict[str, str] = INPUTS, validation: float = 0, **changes: Any
) -> Training:
    """A training of 100 test images; a change is `section__key=value`."""
    parameters = {
        "seed": 42,
        "train.momentum": 0.9,
        f"{run}.epochs": 5,
        "augment.cutout": 0,
        "train.weight_decay": 5e-4,
    }
    parameters |= {name.replace("__", "."): value for name, value in changes.items()}
    tested = SimpleNamespace(accuracy=accuracy, interval=[accuracy - 0.05, accuracy + 0.04])
    evaluation = SimpleNamespace(runs={run: tested}, parameters={"data.validation": validation})
    return Training(None, run, parameters, inputs, evaluation)  # type: ignore[arg-type]


def trainings(**changes: Any) -> list[Training]:
    """A training of each run."""
    return [training(run, accuracy, **changes) for run, accuracy in OWN.items()]
