"""Small data and recipes for the tests of the training core."""

import copy

import numpy as np
import torch
from torch import nn

from stages.common.dataset import Counts, Dataset, DatasetInfo, Split
from stages.common.params import Augment, Train
from stages.training.checkpoint import State
from stages.training.device import Device
from stages.training.loop import train
from stages.training.recipe import Recipe, build_model

CPU = Device(torch.device("cpu"), "fp32", compile=False)
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.25, 0.3]
TRAIN = {
    "batch_size": 32, "learning_rate": 0.02, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4,
    "schedule": "cosine", "warmup_epochs": 0, "label_smoothing": 0.0, "precision": "fp32", "compile": False,
    "keep": "best", "sync_batchnorm": False,
}  # fmt: skip


def augmented(crop_padding: int = 2, flip: bool = True, cutout: int = 0) -> Augment:
    return Augment(crop_padding=crop_padding, flip=flip, cutout=cutout)


def recipe(model: str = "cnn", epochs: int = 2, seed: int = 1, augment: Augment | None = None, **changes) -> Recipe:
    """A recipe of a small model, with these changes of `train`."""
    settings = {"epochs": epochs} | ({"base_channels": 16, "blocks": [1, 1, 1, 1]} if model == "resnet" else {})
    train = Train(**TRAIN | changes)
    return Recipe(run="toy", model=model, seed=seed, settings=settings, train=train, augment=augment or augmented())


def dataset(train: int = 70, test: int = 50, size: int = 8, classes: int = 4, validation: bool = False) -> Dataset:
    """Images whose brightness tells their class; with `validation` the held-out ones are validation images."""

    def split(count: int) -> Split:
        random = np.random.default_rng(count)
        labels = random.integers(0, classes, count)
        noise = random.integers(0, 120, (count, size, size, 3))
        images = (noise + 120 // classes * labels[:, None, None, None]).astype(np.uint8)
        return Split(images, labels, np.arange(count).astype(str))

    counts = Counts(train=train, test=test, validation=test if validation else 0)
    about = {"name": "toys", "source": "images", "sha256": "ab" * 32, "image_size": size, "mean": MEAN, "std": STD}
    info = DatasetInfo(**about, counts=counts, classes=[f"class {number}" for number in range(classes)])
    return Dataset(info, split(train), split(test))


def fresh(of: Recipe, classes: int = 4) -> nn.Module:
    return build_model(of, classes)


def dropping() -> nn.Module:
    """A small network with dropout."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 4))


def states(network: nn.Module, data: Dataset, of: Recipe, device=CPU, resumed=None, **options) -> list[State]:
    """The state after each epoch; the training's own tensors go on changing, so these are copies."""
    return [copy.deepcopy(state) for state in train(network, data, of, device, resumed, **options)]


def same(one: State, other: State) -> bool:
    """Whether two states are equal to the last bit, times aside."""
    pairs = [(one.tensors, other.tensors), (one.best_weights, other.best_weights)]
    return one.history == other.history and all(
        mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine) for mine, theirs in pairs
    )
