"""Small data and recipes for the tests of the training core."""

import numpy as np
import torch

from stages.common.dataset import Counts, Dataset, DatasetInfo, Split
from stages.common.params import Augment, Cnn, Recipe, Resnet, Train
from stages.training.device import Backend
from stages.training.models import build_model

CPU = Backend(torch.device("cpu"), "fp32", compile=False)
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.25, 0.3]


def recipe(model: str = "resnet", epochs: int = 2, seed: int = 1, crop_padding: int = 2, **train: object) -> Recipe:
    """A recipe of a small model, with the given fields of `train`."""
    settings = Cnn(epochs=epochs) if model == "cnn" else Resnet(epochs=epochs, base_channels=16, blocks=[1, 1, 1, 1])
    fields = {
        "batch_size": 32,
        "learning_rate": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "precision": "fp32",
        "compile": False,
        "keep": "best",
        "sync_batchnorm": False,
    }
    augment = Augment(crop_padding=crop_padding, flip=True)
    return Recipe(run="toy", model=model, seed=seed, settings=settings, train=Train(**fields | train), augment=augment)


def dataset(train: int = 310, test: int = 50, size: int = 16, classes: int = 10) -> Dataset:
    """Images whose brightness tells their class."""

    def split(count: int) -> Split:
        random = np.random.default_rng(count)
        labels = random.integers(0, classes, count)
        noise = random.integers(0, 60, (count, size, size, 3))
        return Split((noise + 18 * labels[:, None, None, None]).astype(np.uint8), labels)

    info = DatasetInfo(
        name="toys",
        source="images",
        sha256="ab" * 32,
        classes=[f"class {number}" for number in range(classes)],
        image_size=size,
        counts=Counts(train=train, test=test),
        mean=MEAN,
        std=STD,
    )
    return Dataset(info, split(train), split(test))


def model(of: Recipe, classes: int = 10) -> torch.nn.Module:
    return build_model(of.settings, classes, of.seed)
