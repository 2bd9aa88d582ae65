"""The recipe of a training, and what follows from it: the network, from a file of stages/models/, and the rates."""

import importlib
import math
from types import ModuleType
from typing import Any

import torch
from pydantic import SerializeAsAny, ValidationError, ValidationInfo, field_validator, model_validator
from torch import nn

from stages.common.errors import UserError, explain, shown
from stages.common.files import Record
from stages.common.params import PARAMS, Augment, Name, Params, Section, Train


class Recipe(Record):
    """Everything that determines a trained model besides data and code."""

    run: Name
    model: Name
    seed: int
    settings: SerializeAsAny[Section]  # of the model: its class `Settings`
    train: Train  # with the weight decay of this run
    augment: Augment

    @field_validator("settings", mode="plain")
    @classmethod
    def settings_are_of_the_model(cls, settings: Any, info: ValidationInfo) -> Section:
        values = settings.model_dump() if isinstance(settings, Section) else settings
        if "model" not in info.data:
            raise ValueError("no model to read them for")
        return model_file(info.data["model"]).Settings.model_validate(values)

    @model_validator(mode="after")
    def warm_up_ends(self) -> "Recipe":
        if (warmup := self.train.warmup_epochs) >= self.epochs:
            raise ValueError(f"train.warmup_epochs = {warmup}: must be less than {self.model}.epochs = {self.epochs}")
        return self

    @property
    def epochs(self) -> int:
        """The number of epochs, which every model's settings have."""
        return self.settings.epochs  # type: ignore[attr-defined]

    @property
    def title(self) -> str:
        """The model in a few words, such as ResNet-18, 16 channels."""
        return self.settings.title  # type: ignore[attr-defined]


def model_file(name: str) -> ModuleType:
    """Import stages/models/NAME.py, which has `Settings` and `build`."""
    return importlib.import_module(f"stages.models.{name}")


def recipe_of(params: Params, run: str) -> Recipe:
    """Return the recipe of a run; the settings of all runs are checked, so that the first training finds each mistake.

    Raises:
        UserError: there is no such run, or a model has other settings than its file allows.
    """
    if run not in params.runs:
        raise UserError(f"{shown(run)} is no run in {PARAMS}; there is {', '.join(params.runs)}")
    return {name: _recipe(params, name) for name in params.runs}[run]


def _recipe(params: Params, run: str) -> Recipe:
    model, kind = params.runs[run].model, model_file(params.runs[run].model).Settings
    train = params.train.model_copy(update={"weight_decay": params.weight_decays[params.runs[run].weight_decay]})
    try:
        settings = kind.model_validate(params.models[model])
        return Recipe(run=run, model=model, seed=params.seed, settings=settings, train=train, augment=params.augment)
    except ValidationError as error:
        raise UserError(f"{PARAMS}: section {model}: {explain(error, kind)}") from error


def build_model(recipe: Recipe, classes: int) -> nn.Module:
    """Return a freshly initialised model, the same for the same arguments on any machine.

    The CPU's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed % 2**64)
        return model_file(recipe.model).build(recipe.settings, classes)


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def learning_rates(recipe: Recipe) -> list[float]:
    """Return the learning rate of each epoch: a linear rise (Goyal et al. 2017, section 2.2), then the schedule.

    `cosine` falls to zero over its epochs without restarts (Loshchilov & Hutter 2017, equation 5); `step` divides by
    ten at half and again at three quarters of them (He et al. 2015, section 4.2).
    """
    peak, warmup = recipe.train.learning_rate, recipe.train.warmup_epochs
    rise = [peak * (epoch + 1) / (warmup + 1) for epoch in range(warmup)]
    epochs = recipe.epochs - warmup
    if recipe.train.schedule == "cosine":
        return rise + [peak * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    milestones = max(1, epochs // 2), max(1, 3 * epochs // 4)
    return rise + [peak * 0.1 ** sum(epoch >= milestone for milestone in milestones) for epoch in range(epochs)]
