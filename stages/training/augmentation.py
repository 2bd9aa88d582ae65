"""The random part of an epoch, and the batches it describes: gathered, cropped, flipped and normalised on the device.

The training images are one tensor on the device, so a batch is a gather and never a copy from the host.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.common.dataset import Split


def draw_epoch(seed: int, epoch: int, count: int, crop_padding: int, flip: bool) -> Tensor:
    """Order, crops and flips of an epoch, a pure function of seed and epoch: int64 of shape count×4.

    Row i describes the i-th image to be trained on: its index, top and left of its crop in 0..2·crop_padding, and 1 if
    it is flipped.
    """
    random = np.random.default_rng([seed % 2**64, epoch])
    draws = np.zeros((count, 4), dtype=np.int64)
    draws[:, 0] = random.permutation(count)
    draws[:, 1:3] = random.integers(0, 2 * crop_padding, size=(count, 2), endpoint=True)
    draws[:, 3] = random.integers(0, 1, size=count, endpoint=True) * flip
    return torch.from_numpy(draws)


class Normalise:
    """uint8 N×H×W×3 → float32 N×3×H×W in channels_last: pixels in [0, 1], minus the mean, over the deviation."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device):
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        # A permuted view of N×H×W×3 is channels_last already, and the arithmetic keeps it so.
        return (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std


class TrainingImages:
    """Training images on a device, padded once. Every crop is a view of them, so that a batch is one gather."""

    def __init__(self, split: Split, crop_padding: int, normalise: Normalise, device: torch.device):
        images = torch.from_numpy(split.images).to(device)
        size = images.shape[1]
        padded = F.pad(images, (0, 0) + (crop_padding,) * 4)  # N×(H+2p)×(W+2p)×3, zeros around
        crops = padded.unfold(1, size, 1).unfold(2, size, 1)  # N×(2p+1)×(2p+1)×3×H×W
        self.crops = crops.permute(0, 1, 2, 4, 5, 3)  # N×(2p+1)×(2p+1)×H×W×3
        self.labels = torch.from_numpy(split.labels).to(device)
        self.normalise = normalise

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Gather, crop and flip the images that B rows of `draw_epoch` describe: float32 B×3×H×W, labels int64 B."""
        index, top, left, flipped = draws.unbind(1)
        images = self.crops[index, top, left]  # B×H×W×3
        images = torch.where(flipped.bool()[:, None, None, None], images.flip(2), images)
        return self.normalise(images), self.labels[index]
