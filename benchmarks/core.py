"""The training core as the benchmarks drive it: a step on batches of a data set, without the test of each epoch."""

import torch
from torch import Tensor

from stages.common.dataset import DatasetInfo, Split, read_info, read_split
from stages.common.params import Run, load_params
from stages.training.augmentation import Normalise, TrainingImages, batches, draw_epoch
from stages.training.device import Device
from stages.training.loop import build_update
from stages.training.recipe import Recipe, build_model, recipe_of
from stages.training.step import Step


def recipe_for(model: str, **train: object) -> Recipe:
    """Return the recipe that params.yaml has for a model, with other values of the section `train`."""
    params, run = load_params(), Run(model=model, weight_decay="train.weight_decay")
    changed = {"train": params.train.model_copy(update=train), "runs": {model: run}}
    return recipe_of(params.model_copy(update=changed), model)


def read_images(count: int) -> tuple[DatasetInfo, Split]:
    """Return dataset.json and the first `count` training images of data/."""
    info = read_info()
    return info, Split(*(array[:count] for array in read_split("train", info)))


class Core:
    """A step, built as `stages.training.loop.train` builds it.

    Args:
        split: the images to train on.

    Attributes:
        update: trains on the rows of a batch, captured and replayed as in the product.
        rows: of a whole batch.
    """

    def __init__(self, recipe: Recipe, data: tuple[DatasetInfo, Split], device: Device):
        self.recipe, (self.info, split), self.device = recipe, data, device
        self.normalise = Normalise(self.info.mean, self.info.std, device.torch)
        images = TrainingImages(split, recipe.augment, self.normalise, device.torch)
        self.model = device.place(build_model(recipe, len(self.info.classes))).train()
        self.step = Step(device.processes.replicate(self.model), images, recipe.train, device.autocast)
        self.update = build_update(self.step, recipe.train.batch_size, device)
        self.rows = self.draws(1)[: recipe.train.batch_size]

    def draws(self, epoch: int) -> Tensor:
        """Return the draws of an epoch on the device, int64 N×6."""
        size, augment = self.info.image_size, self.recipe.augment
        draws = draw_epoch(self.recipe.seed, epoch, len(self.step.images), size, augment)
        return self.device.copied(torch.stack(draws, 1))

    def epoch(self, number: int) -> None:
        """Train on all images once, and wait for the device."""
        for rows in batches(self.draws(number), self.recipe.train.batch_size, self.device.processes.world_size):
            self.update(rows)
        self.step.sums.tolist()
