"""params.yaml as one typed, validated view: a value that reaches a stage is one the experiment can run with."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core.errors import UserError

PositiveInt = Annotated[int, Field(ge=1)]
WeightDecay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    source: Literal["cifar10", "images", "digits"]
    path: Annotated[str, Field(min_length=1)] | None
    image_size: Annotated[int, Field(ge=8, le=512)]

    @field_validator("path")
    @classmethod
    def images_have_a_path(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is None and info.data.get("source") == "images":
            raise ValueError(
                "must name a folder or a tar of {train,test}/<class>/<image file> when data.source is images"
            )
        return path


class Train(Section):
    batch_size: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: WeightDecay
    schedule: Literal["cosine", "step"]
    precision: Literal["auto", "fp32", "tf32", "bf16"]
    compile: Literal["auto", True, False]
    keep: Literal["best", "last"]
    sync_batchnorm: bool


class Augment(Section):
    crop_padding: Annotated[int, Field(ge=0, le=512)]
    flip: bool


class Cnn(Section):
    epochs: PositiveInt


class Resnet(Section):
    epochs: PositiveInt
    # Under 16 input channels, oneDNN's weight gradient of a strided 1×1 convolution in channels_last corrupts memory
    # when the batch is odd (torch 2.14.1 on AVX-512).
    base_channels: Annotated[int, Field(ge=16, le=4096)]
    blocks: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=4)]


class Ablation(Section):
    weight_decay: WeightDecay


class Params(Section):
    seed: int
    data: Data
    train: Train
    augment: Augment
    cnn: Cnn
    resnet: Resnet
    ablation: Ablation
    launcher: Annotated[str, Field(min_length=1)]


class Run(Section):
    """The arguments of `python -m stages.train`."""

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    model: str
    epochs: PositiveInt
    weight_decay: WeightDecay


def check(kind: type[Section], values: object, where: str | Path) -> Section:
    """The values as a `kind`.

    Raises:
        UserError: one is missing, unknown, of the wrong type or out of range; the message begins with `where` and names
            each such key, its value and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(map(_describe, error.errors()))) from error


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate the parameters at `path`.

    The file is read as YAML 1.2, as DVC reads it: `1e-05`, which DVC writes for `-S train.weight_decay=1e-5`, is a
    number there (PyYAML, a YAML 1.1 reader, takes it for a string).

    Raises:
        UserError: the file is missing or no YAML, or what is in it is not allowed (see `check`).
    """
    try:
        document = YAML(typ="safe", pure=True).load(Path(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return check(Params, document, path)


def _describe(problem) -> str:
    """One of pydantic's errors as `key = value: what is allowed`."""
    key = ".".join(map(str, problem["loc"])) or "the file"
    message = (
        problem["msg"].removeprefix("Value error, ").replace("Input should", "must").replace("String should", "must")
    )
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "extra_forbidden":
        section = Params.model_fields[problem["loc"][0]].annotation if len(problem["loc"]) > 1 else Params
        return f"{key} is unknown; known here: {', '.join(section.model_fields)}"
    return f"{key} = {problem['input']!r}: {message}"
