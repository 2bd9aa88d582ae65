"""A run of all parts: its folder with parameters and images, its page, and the core on them."""

import contextlib
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from benchmarks.core import Core, recipe_for
from benchmarks.page import Page
from stages.common.dataset import DatasetInfo, Split, read_dataset, read_info, write_dataset
from stages.common.params import PARAMS, load_params, parse_yaml
from stages.datasets.source import Source, describe
from stages.training.device import Device, choose_device

Size = TypeVar("Size")
ROOT = Path(__file__).parents[2]
CLASSES = 10
Changes = dict[str, Any]  # of params.yaml, by dotted names
RUNS: Changes = {"runs": {"resnet": {"model": "resnet", "weight_decay": "train.weight_decay"}}, "compare": {}}
# Small enough for a rehearsal: two whole batches of training images, and a smaller one
TINY: Changes = {
    "data.image_size": 8,
    "train.batch_size": 16,
    "resnet.base_channels": 16,
    "resnet.blocks": [1, 1, 1, 1],
}


@dataclass(frozen=True)
class Session:
    """What each part is given, in a process of its own whose current folder is `folder`."""

    folder: Path  # params.yaml and data/
    output: Path  # the page
    rehearse: bool
    deadline: float  # of the part, by time.monotonic()

    @cached_property
    def page(self) -> Page:
        return Page(self.output)

    def size(self, whole: Size, rehearsed: Size) -> Size:
        """Return the first, or for a rehearsal the second."""
        return rehearsed if self.rehearse else whole

    def compiles(self, compile: bool = True) -> bool:
        """Return the argument, for a rehearsal False: compiling takes a minute a time, and is tested elsewhere."""
        return compile and not self.rehearse

    def device(self, compile: bool = False) -> Device:
        """Set up the device for the recipe of ResNet-18."""
        return choose_device(recipe_for("resnet", compile=self.compiles(compile)).train, images=0)

    def core(self, device: Device) -> Core:
        """Return the step of ResNet-18 on the training images."""
        dataset = read_dataset()
        return Core(recipe_for("resnet"), (dataset.info, dataset.train), device)


def prepare(folder: Path, data: Path | None, rehearse: bool) -> DatasetInfo:
    """Write params.yaml, that of the project, and data/: a link to the given folder, or synthetic images."""
    write_params(folder, ROOT / PARAMS, RUNS | (TINY if rehearse else {}))
    with contextlib.chdir(folder):
        if data:
            Path("data").symlink_to(data)
        else:
            source = _synthetic(*((40, 20, 8) if rehearse else (50_000, 10_000, 32)))
            write_dataset(*describe(source, load_params().data))
        return read_info()


def write_params(folder: Path, original: Path, changes: Changes) -> None:
    """Write the parameters of another folder with changes."""
    params = parse_yaml(original.read_bytes(), original)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        (params[section] if key else params)[key or section] = value
    (folder / PARAMS).write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def _synthetic(train: int, test: int, size: int) -> Source:
    """Images of ten classes that can be learned: a coarse pattern for each class under much noise."""
    random = np.random.default_rng(0)
    patterns = random.uniform(88, 168, (CLASSES, 4, 4, 3)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)

    def split(count: int) -> Split:
        labels = random.permutation(np.arange(count) % CLASSES)
        noise = random.standard_normal((count, size, size, 3), dtype=np.float32)
        images = np.clip(patterns[labels] + 40 * noise, 0, 255).astype(np.uint8)
        return Split(images, labels, np.arange(count).astype(str))

    splits = split(train), split(test)
    digest = hashlib.sha256(splits[0].images).hexdigest()
    return Source("synthetic images", digest, [f"class {number}" for number in range(CLASSES)], *splits)
