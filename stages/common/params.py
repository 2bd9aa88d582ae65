"""params.yaml as one typed, validated object, the runs of dvc.yaml, and the recipe of a training.

A section of params.yaml is a class here, and travels as that class to wherever it is used.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from stages.common.errors import UserError, explain, shown
from stages.common.yaml12 import read_yaml

PARAMS, PIPELINE = Path("params.yaml"), Path("dvc.yaml")

PositiveInt = Annotated[int, Field(ge=1, le=2**31)]
WeightDecay = Annotated[float, Field(ge=0, lt=1)]
SourceName = Literal["cifar10", "images", "digits"]
Checked = TypeVar("Checked", bound=BaseModel)
# A name of a run, of a comparison or of a parameter: part of file names and of command lines
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    source: SourceName
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None
    image_size: Annotated[int, Field(ge=8, le=512)]  # pixels

    @field_validator("path")
    @classmethod
    def path_names_a_place(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path and "\0" in path:
            raise ValueError("must not contain a NUL character")
        if path is None and info.data.get("source") == "images":
            raise ValueError(
                "must name a folder or a tar of {train,test}/<class>/<image file> when data.source is images"
            )
        return path


class Train(Section):
    batch_size: Annotated[int, Field(ge=2, le=2**20)]  # batch normalisation needs two images
    learning_rate: Annotated[float, Field(gt=0)]  # of the first epoch
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: WeightDecay  # on every parameter
    schedule: Literal["cosine", "step"]
    precision: Literal["auto", "fp32", "tf32", "bf16"]
    compile: Literal["auto", True, False]
    keep: Literal["best", "last"]
    sync_batchnorm: bool


class Augment(Section):
    crop_padding: Annotated[int, Field(ge=0)]  # pixels
    flip: bool


class Cnn(Section):
    epochs: PositiveInt

    @property
    def title(self) -> str:
        return "Simple CNN"


class Resnet(Section):
    epochs: PositiveInt
    # Under 16 input channels, oneDNN's weight gradient of a strided 1×1 convolution in channels_last corrupts memory
    # when the batch is odd (torch 2.14.1 on AVX-512).
    base_channels: Annotated[int, Field(ge=16, le=1024)]
    blocks: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=4, max_length=4)]

    @property
    def title(self) -> str:
        """The name of the network, and its width where that is not the original's: ResNet-18, 16 channels."""
        depth = 2 + 2 * sum(self.blocks)  # stem and classifier, and two convolutions a block
        return f"ResNet-{depth}" + (f", {self.base_channels} channels" if self.base_channels != 64 else "")


class Ablation(Section):
    """`weight_decay`, and further values under other names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, WeightDecay]

    weight_decay: WeightDecay


class Recipe(Section):
    """Everything that determines a trained model besides data and code."""

    run: Name
    model: Literal["cnn", "resnet"]
    seed: int
    settings: Cnn | Resnet  # the section of params.yaml that `model` names
    train: Train  # with the weight decay of this run
    augment: Augment

    @model_validator(mode="after")
    def settings_are_of_the_model(self) -> "Recipe":
        if isinstance(self.settings, Cnn) != (self.model == "cnn"):
            raise ValueError(f"settings are not those of model {self.model}")
        return self


class Params(Section):
    """Every parameter of the pipeline: params.yaml."""

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]  # seeds that agree modulo 2**64 would be one
    data: Data
    train: Train
    augment: Augment
    cnn: Cnn
    resnet: Resnet
    ablation: Ablation
    compare: dict[Name, Annotated[list[Name], Field(min_length=2, max_length=2)]]
    launcher: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def crops_hold_part_of_the_image(self) -> "Params":
        padding, size = self.augment.crop_padding, self.data.image_size
        if padding > size // 2:
            raise ValueError(
                f"augment.crop_padding = {padding} is more than half of data.image_size = {size}: crops could be "
                "mostly black; lower it"
            )
        return self

    def recipe(self, run: str, model: str, weight_decay: str) -> Recipe:
        """The recipe of a run.

        Args:
            run: its name.
            model: its section of params.yaml, `cnn` or `resnet`.
            weight_decay: the name of the parameter that holds its weight decay, such as `ablation.weight_decay`.

        Raises:
            UserError: there is no such model or parameter, or the name cannot be one.
        """
        known = {"train.weight_decay": self.train.weight_decay}
        known |= {f"ablation.{name}": value for name, value in self.ablation.model_dump().items()}
        if weight_decay not in known:
            raise UserError(f"{shown(weight_decay)} is no weight decay in {PARAMS}; there is {', '.join(known)}")
        return check(
            Recipe,
            {
                "run": run,
                "model": model,
                "seed": self.seed,
                "settings": getattr(self, model, None),
                "train": self.train.model_copy(update={"weight_decay": known[weight_decay]}),
                "augment": self.augment,
            },
            f"run {shown(run)}",
        )


class Runs(Section):
    """The part of dvc.yaml that is read here."""

    foreach: Annotated[list[Name], Field(min_length=1)]


def check(kind: type[Checked], values: object, where: str | Path) -> Checked:
    """The values as a `kind`.

    Raises:
        UserError: one is missing, unknown, of the wrong type or out of range; the message begins with `where` and names
            each such key, its value and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{where}: {explain(error, kind) if isinstance(error, ValidationError) else error}") from error


def load_params(path: Path = PARAMS) -> Params:
    """The validated parameters.

    Raises:
        UserError: the file is missing or no YAML, or what is in it is not allowed (see `check`).
    """
    return check(Params, read_yaml(path), path)


def load_runs(path: Path = PIPELINE) -> list[str]:
    """The names of the runs, in the order of dvc.yaml: the items under `foreach`.

    Raises:
        UserError: the file is missing, there is no run, or a name that cannot be one.
    """
    try:
        names = list(read_yaml(path)["stages"]["train"]["foreach"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no runs under stages.train.foreach") from error
    return check(Runs, {"foreach": names}, path).foreach
