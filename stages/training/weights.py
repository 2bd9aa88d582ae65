"""A trained model as one safetensors file: weights and model card."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from stages.common.dataset import DatasetInfo
from stages.common.errors import UserError, explain, printable
from stages.common.files import Record, read_bytes
from stages.common.image import decode, fitted
from stages.training import checkpoint
from stages.training.augmentation import Normalise
from stages.training.device import exact_device
from stages.training.loop import forward_test, predict
from stages.training.recipe import Recipe, build_model


class Card(Record):
    """The model card: how the model was trained, on what, and how that went."""

    recipe: Recipe
    data: DatasetInfo
    history: list[dict[str, float]]  # a row for each epoch: the columns of plots/history/RUN.csv


def to_bytes(card: Card, weights: dict[str, Tensor]) -> bytes:
    """Return the content of a model file, which depends on the arguments alone."""
    return checkpoint.to_bytes(card.model_dump(mode="json"), weights)


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
        """The names of the classes, in the order of the columns of `probabilities`."""
        return self.card.data.classes

    def log_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the natural logarithm of the probability of each class, float64 N×classes, computed in fp32.

        Args:
            images: uint8 N×H×W×3, H and W as in training (`card.data.image_size`).

        Raises:
            UserError: the images are something else.
        """
        size = self.card.data.image_size
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            found = [type(images).__name__, *(str(getattr(images, name, "")) for name in ("dtype", "shape"))]
            raise UserError(f"images must be a numpy array of uint8, N×{size}×{size}×3, not {' '.join(found)}")
        device = exact_device()
        normalise = Normalise(self.card.data.mean, self.card.data.std, device.torch)
        network, pixels = device.place(self.network), torch.from_numpy(images).to(device.torch)
        logits = predict(lambda batch: forward_test(network, normalise(batch), device), pixels)
        return logits.double().log_softmax(1).cpu().numpy()

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 N×classes; see `log_probabilities`."""
        return np.exp(self.log_probabilities(images))

    def classify(self, image: str | Path | Image.Image) -> dict[str, float]:
        """Return the probability of each class by its name, the likeliest first.

        Args:
            image: an image file, or an image of Pillow, of any size; prepared as the download stage does.

        Raises:
            UserError: there is no such file, or it is no image that can be read.
        """
        size = self.card.data.image_size
        if isinstance(image, Image.Image):
            pixels = fitted(image, size)
        else:
            pixels = decode(read_bytes(Path(image), "name an image"), size, printable(image))
        probabilities = self.probabilities(pixels[None].copy())[0]
        return {self.classes[i]: float(probabilities[i]) for i in np.argsort(-probabilities, kind="stable")}


def parse_model(content: bytes, path: Path) -> Classifier:
    """Return the model in the content of a model file; `path` is for messages.

    Raises:
        UserError: it is damaged, or not one of ours.
    """
    try:
        card_values, weights = checkpoint.from_bytes(content)
        card = Card.model_validate(card_values)
        network = build_model(card.recipe, len(card.data.classes))
        network.load_state_dict(weights)
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("has weights that are not finite")
    except (ValueError, RuntimeError, ImportError) as error:  # RuntimeError: weights of other names or shapes
        reason = explain(error, Card) if isinstance(error, ValidationError) else printable(error)
        raise UserError(f"{printable(path)}: not a model of this pipeline ({reason}); train it again") from error
    return Classifier(card, network)


def load_model(path: str | Path) -> Classifier:
    """Read a model file.

    Raises:
        UserError: the file is missing, damaged, or not one of ours.
    """
    return parse_model(read_bytes(Path(path)), Path(path))
