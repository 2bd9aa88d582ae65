"""What a model makes of images."""

import torch
from torch import Tensor, nn

from stages.core.device import Backend
from stages.core.images import Normalise

BATCH_SIZE = 1000


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, normalise: Normalise, backend: Backend) -> Tensor:
    """The model's logits, float32 N×classes, for uint8 N×H×W×3 images on its device."""
    model.eval()
    with backend.autocast():
        return torch.cat([model(normalise(batch)).float() for batch in images.split(BATCH_SIZE)])
