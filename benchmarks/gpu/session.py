"""A run of all parts: its folder with parameters and images, its page, and trainings as the product builds them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from torch import Tensor, nn

from benchmarks.gpu.meter import Cpu, Gpu, Meter
from benchmarks.page import Page
from stages.common.dataset import Counts, DatasetInfo, Split, read_dataset, read_info, write_dataset
from stages.common.params import PARAMS, Recipe, load_params
from stages.common.yaml12 import read_yaml
from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.device import Backend, choose_backend
from stages.training.loop import build_update
from stages.training.models import build_model
from stages.training.step import Step

ROOT = Path(__file__).parents[2]
CLASSES = 10
Variant = TypeVar("Variant")
Changes = dict[str, Any]  # of params.yaml
# Small enough for a rehearsal: two whole batches of training images, and a smaller one
TINY: Changes = {
    "data": {"image_size": 8},
    "train": {"batch_size": 16},
    "resnet": {"base_channels": 16, "blocks": [1, 1, 1, 1]},
}


@dataclass(frozen=True)
class Session:
    """What each part is given, in a process of its own whose current folder is `folder`."""

    folder: Path  # params.yaml and data/
    output: Path  # the page
    rehearse: bool
    deadline: float  # of the part, by time.monotonic()

    @property
    def meter(self) -> Meter:
        return Cpu() if self.rehearse else Gpu()

    @cached_property
    def page(self) -> Page:
        return Page(self.output)

    def size(self, whole: int, rehearsed: int) -> int:
        return rehearsed if self.rehearse else whole

    def some(self, variants: Sequence[Variant]) -> Sequence[Variant]:
        """All of them, or for a rehearsal the last."""
        return variants[-1:] if self.rehearse else variants


class Training:
    """A step over the training images of `folder`, built as `stages.training.loop.train` builds it.

    Args:
        compile: the value of train.compile, where the device compiles.
        change: applied to the model before it is placed on the device.

    Attributes:
        batch: rows of a whole batch.
    """

    def __init__(self, compile: bool = False, change: Callable[[nn.Module], nn.Module] = lambda model: model):
        self.recipe, self.dataset = recipe(), read_dataset()
        train, augment, info = self.recipe.train, self.recipe.augment, self.dataset.info
        self.backend: Backend = choose_backend(train.model_copy(update={"compile": compile}), images=0)
        self.normalise = Normalise(info.mean, info.std, self.backend.device)
        self.images = TrainingImages(self.dataset.train, augment.crop_padding, self.normalise, self.backend.device)
        model = change(build_model(self.recipe.settings, len(info.classes), self.recipe.seed))
        self.model = self.backend.place(model).train()
        self.step = Step(self.model, self.images, train, self.backend.autocast)
        self.update = build_update(self.step, train.batch_size, self.backend)
        self.batch = self.draws(epoch=1)[: train.batch_size]

    def draws(self, epoch: int) -> Tensor:
        augment = self.recipe.augment
        drawn = draw_epoch(self.recipe.seed, epoch, len(self.images), augment.crop_padding, augment.flip)
        return self.backend.to_device(drawn)


def recipe() -> Recipe:
    return load_params().recipe("resnet", "resnet", "train.weight_decay")


def prepare(folder: Path, data: Path | None, rehearse: bool) -> DatasetInfo:
    """Write params.yaml, that of the project, and data/: a link to the given folder, or synthetic images."""
    changes = TINY if rehearse else {}
    write_params(folder, ROOT / PARAMS, changes)
    if data:
        (folder / "data").symlink_to(data.absolute())
    else:
        _write_synthetic(folder / "data", *((40, 20, 8) if rehearse else (50_000, 10_000, 32)))
    return read_info(folder / "data")


def write_params(folder: Path, original: Path, changes: Changes) -> None:
    params = read_yaml(original)
    for name, change in changes.items():
        params[name] = params[name] | change if isinstance(change, dict) else change
    (folder / PARAMS).write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def _write_synthetic(folder: Path, train: int, test: int, size: int) -> None:
    """Images of ten classes that can be learned: a coarse pattern for each class under much noise."""
    random = np.random.default_rng(0)
    patterns = random.uniform(88, 168, (CLASSES, 4, 4, 3)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)

    def split(count: int) -> Split:
        labels = random.permutation(np.arange(count) % CLASSES)
        noise = random.standard_normal((count, size, size, 3), dtype=np.float32)
        return Split(np.clip(patterns[labels] + 40 * noise, 0, 255).astype(np.uint8), labels)

    splits = split(train), split(test)
    channels = splits[0].images.reshape(-1, 3) / np.float32(255)
    info = DatasetInfo(
        name="synthetic images",
        source="images",
        sha256=hashlib.sha256(splits[0].images).hexdigest(),
        classes=[f"class {number}" for number in range(CLASSES)],
        image_size=size,
        counts=Counts(train=train, test=test),
        mean=[round(float(value), 4) for value in channels.mean(0, dtype=np.float64)],
        std=[round(float(value), 4) for value in channels.std(0, dtype=np.float64)],
    )
    write_dataset(info, *splits, folder)
