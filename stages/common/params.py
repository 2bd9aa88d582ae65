"""params.yaml as one typed, validated object. A section of params.yaml is a class here.

The sections of the models are classes too, each beside its network in stages/models/, so that a new model edits no
code; `stages/training/recipe.py` reads them.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from stages.common.errors import UserError, explain, printable, shown
from stages.common.files import Record, read_bytes

PARAMS = Path("params.yaml")
MODELS = Path(__file__).parents[1] / "models"  # a file for each model

PositiveInt = Annotated[int, Field(ge=1, le=2**31)]
WeightDecay = Annotated[float, Field(ge=0, lt=1)]
SourceName = Literal["cifar10", "cifar100", "images", "digits"]
# A name of a run, of a comparison or of a parameter: part of file names and of command lines
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Section(Record):
    """A section of params.yaml."""


class Data(Section):
    source: SourceName
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None
    image_size: Annotated[int, Field(ge=8, le=512)]  # pixels
    test_share: Annotated[float, Field(gt=0, lt=1)]  # of each class, for images without a split
    validation: Annotated[float, Field(ge=0, lt=1)]  # share of each class of the training images

    @field_validator("path")
    @classmethod
    def path_names_a_place(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is None and info.data.get("source") == "images":
            raise ValueError("must name a folder, a tar or a zip of images when data.source is images")
        return path


class Train(Section):
    batch_size: Annotated[int, Field(ge=2, le=2**20)]  # batch normalisation needs two images
    learning_rate: Annotated[float, Field(gt=0)]  # the peak
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: WeightDecay  # on every parameter
    schedule: Literal["cosine", "step"]
    warmup_epochs: Annotated[int, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["auto", "fp32", "tf32", "bf16"]
    compile: Literal["auto", True, False]
    keep: Literal["best", "last"]
    sync_batchnorm: bool

    @model_validator(mode="after")
    def nesterov_has_momentum(self) -> "Train":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Augment(Section):
    crop_padding: Annotated[int, Field(ge=0)]  # pixels
    flip: bool
    cutout: Annotated[int, Field(ge=0)]  # pixels, the side of the square


class Study(Section):
    seeds: PositiveInt
    margin: Annotated[float, Field(ge=0, lt=1)]  # a fraction; differences within it count as equal


class Ablation(Section):
    """`weight_decay`, and further values under other names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, WeightDecay]

    weight_decay: WeightDecay


class Run(Section):
    model: Name  # a file in stages/models/ and a section of params.yaml
    weight_decay: str  # the parameter that holds it, such as train.weight_decay


class Params(Section):
    """Every parameter of the pipeline: params.yaml. Its further sections are those of the models."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]  # seeds that agree modulo 2**64 would be one
    data: Data
    train: Train
    augment: Augment
    study: Study
    ablation: Ablation
    runs: Annotated[dict[Name, Run], Field(min_length=1)]
    compare: dict[Name, Annotated[list[Name], Field(min_length=2, max_length=2)]]
    launcher: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def names_exist(self) -> "Params":
        """Raise a ValueError for a section, a model, a parameter or a run that is named and not there."""
        models = sorted(path.stem for path in MODELS.glob("*.py"))
        if unknown := [name for name in self.models if name not in models]:
            known = ", ".join([*type(self).model_fields, *models])
            raise ValueError(f"{printable(unknown[0], 80)} is unknown; known here: {known}")
        for name, run in self.runs.items():
            for key, there in (("model", [*self.models]), ("weight_decay", [*self.weight_decays])):
                if (named := getattr(run, key)) not in there:
                    raise ValueError(f"runs.{name}.{key} = {shown(named)} is not there; there is {', '.join(there)}")
        for name, pair in self.compare.items():
            if pair[0] == pair[1] or not {*pair} <= self.runs.keys():
                raise ValueError(f"compare.{name} = {shown(pair)}: must name two runs of {', '.join(self.runs)}")
        return self

    @model_validator(mode="after")
    def patches_are_part_of_the_image(self) -> "Params":
        size = self.data.image_size
        for name, most in (("crop_padding", size // 2), ("cutout", size)):
            if (value := getattr(self.augment, name)) > most:
                raise ValueError(f"augment.{name} = {value}: must be at most {most} where data.image_size is {size}")
        return self

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The sections of the models, as they are in the file."""
        return self.__pydantic_extra__

    @property
    def weight_decays(self) -> dict[str, float]:
        """The weight decays that a run may name, by parameter."""
        return flat({"train": {"weight_decay": self.train.weight_decay}, "ablation": self.ablation.model_dump()})


class Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader, to which `1e-05` is a number: so DVC writes `-S train.weight_decay=1e-5`."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str | bytes, where: str | Path) -> Any:
    """Return the content of a YAML document.

    Raises:
        UserError: it is none; the message begins with `where`.
    """
    try:
        return yaml.load(text, Loader)
    # A LookupError or an AttributeError comes of a tag such as `!!bool x`
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {printable(error)}") from error


def load_params(path: Path = PARAMS) -> Params:
    """Return the validated parameters.

    Raises:
        UserError: the file is missing or no YAML, or a value is missing, unknown, of the wrong type or out of range;
            the message names the key, the value and what is allowed.
    """
    try:
        return Params.model_validate(parse_yaml(read_bytes(path, "run this in the folder of the project"), path))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Params)}") from error


def flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one level of dotted names."""
    result: dict[str, Any] = {}
    for key, value in params.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
