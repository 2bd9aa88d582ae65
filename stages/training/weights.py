"""A trained model as one safetensors file: weights and model card."""

from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from stages.common.dataset import DatasetInfo
from stages.common.errors import UserError, explain, printable
from stages.common.params import Recipe, Section
from stages.training import tensor_file
from stages.training.augmentation import Normalise
from stages.training.device import exact_backend, explained
from stages.training.loop import predict
from stages.training.models import build_model, count_parameters


class Card(Section):
    """The model card: how the model was trained, and on what."""

    recipe: Recipe
    data: DatasetInfo


def to_bytes(card: Card, weights: dict[str, Tensor]) -> bytes:
    """The content of a model file, which depends on the arguments alone."""
    return tensor_file.to_bytes(card.model_dump(mode="json"), weights)


class Classifier:
    """A trained model, ready to use.

    Attributes:
        card: how it was trained.
        network: the model on the CPU.
    """

    def __init__(self, card: Card, network: nn.Module):
        self.card, self.network = card, network

    @property
    def classes(self) -> list[str]:
        return self.card.data.classes

    @property
    def parameters(self) -> int:
        """The number of weights that were trained."""
        return count_parameters(self.network)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class, float64 N×classes, in fp32 on the first GPU or the CPU.

        Args:
            images: uint8 N×H×W×3, H and W as in training (`card.data.image_size`).

        Raises:
            UserError: the device has too little memory.
        """
        backend = exact_backend()
        with explained(self.card.recipe, backend):
            normalise = Normalise(self.card.data.mean, self.card.data.std, backend.device)
            network, pixels = backend.place(self.network), torch.from_numpy(images).to(backend.device)
            return predict(network, pixels, normalise, backend).double().softmax(1).cpu().numpy()


def load_model(path: str | Path) -> Classifier:
    """Read a model file.

    Raises:
        UserError: the file is missing, damaged, or not one of ours.
    """
    path = Path(path)
    try:
        text, weights = tensor_file.read(path)
        card = Card.model_validate(text)
        with torch.device("meta"):  # no memory for weights that are replaced at once
            network = build_model(card.recipe.settings, len(card.data.classes), seed=0)
        network.load_state_dict(weights, assign=True)
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("some of its weights are not finite")
    except (ValueError, RuntimeError) as error:  # RuntimeError: weights of other names or shapes
        reason = explain(error, Card) if isinstance(error, ValidationError) else printable(error)
        where = f"{printable(path)}: not a model of this pipeline"
        raise UserError(f"{where} ({reason}); train it with `dvc repro`") from error
    return Classifier(card, network)
