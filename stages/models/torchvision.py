"""Any classification network of torchvision, by its name, from fresh weights."""

from pydantic import field_validator
from torch import nn
from torchvision import models

from stages.common.params import PositiveInt, Section


class Settings(Section):
    """The section `torchvision` of params.yaml."""

    name: str
    epochs: PositiveInt

    @field_validator("name")
    @classmethod
    def name_is_a_network(cls, name: str) -> str:
        if name not in models.list_models(models):
            raise ValueError("must be a network that torchvision.models.list_models(torchvision.models) names")
        return name

    @property
    def title(self) -> str:
        return self.name


def build(settings: Settings, classes: int) -> nn.Module:
    """Return a freshly initialised network: float B×3×H×W → B×classes. Some need images larger than 32×32."""
    # Those that have further outputs for training are built without them
    options = {"aux_logits": False, "init_weights": True} if settings.name in ("googlenet", "inception_v3") else {}
    return models.get_model(settings.name, weights=None, num_classes=classes, **options)
