"""A trained model as one safetensors file: its weights and, as metadata, all that is needed to build and use it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from stages.core.errors import UserError
from stages.core.models import build_model


@dataclass(frozen=True)
class Card:
    """What a model file says about itself."""

    run: str
    model: str  # simple_cnn or resnet18
    base_channels: int
    blocks: list[int]
    classes: list[str]
    image_size: int
    mean: list[float]
    std: list[float]
    recipe: dict

    @property
    def title(self) -> str:
        """The model's name for people: ResNet-18, and its width where that is not the original's."""
        if self.model == "simple_cnn":
            return "Simple CNN"
        depth = 2 + 2 * sum(self.blocks)  # stem and classifier, and two convolutions a block
        return f"ResNet-{depth}" + (f" ({self.base_channels} channels)" if self.base_channels != 64 else "")


def to_bytes(card: Card, weights: dict[str, Tensor]) -> bytes:
    """The file's content, which depends on the arguments alone: safetensors writes several metadata entries in random
    order, so all of the card is one entry."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    return safetensors.torch.save(tensors, {"card": json.dumps(asdict(card), sort_keys=True)})


def load_model(path: Path) -> tuple[Card, nn.Module]:
    """The card and the model, on the CPU.

    Raises:
        UserError: the file is missing, truncated, or not one of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            card = Card(**json.loads(file.metadata()["card"]))
            weights = {name: file.get_tensor(name) for name in file.keys()}
        model = build_model(card.model, len(card.classes), card.base_channels, card.blocks, seed=0)
        model.load_state_dict(weights)
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a model of this pipeline ({reason}); train it with `dvc repro`") from error
    return card, model
