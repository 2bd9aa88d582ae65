"""The random part of an epoch, and the batches it describes: gathered, cropped, flipped and normalised on the device.

The training images are one tensor on the device, so a batch is a gather and never a copy from the host.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.common.dataset import Split
from stages.common.params import Augment


class Draws(NamedTuple):
    """What is random about N images, in the order in which they are trained on: int64 N each."""

    index: Tensor  # type: ignore[assignment] # of the image; of tuple's method no use is made
    top: Tensor  # of its crop in the padded image, 0..2·crop_padding
    left: Tensor
    flip: Tensor  # 1 if it is mirrored, left to right
    hole_y: Tensor  # centre of the square of zeros, in pixels of the crop
    hole_x: Tensor


def draw_epoch(seed: int, epoch: int, count: int, size: int, augment: Augment) -> Draws:
    """Draw the order and the augmentation of an epoch: a pure function of its arguments.

    Args:
        count: number of training images.
        size: height and width of an image in pixels.
    """
    random = np.random.default_rng([seed % 2**64, epoch])
    order = random.permutation(count)
    corners = random.integers(0, 2 * augment.crop_padding, size=(count, 2), endpoint=True)
    flips = random.integers(0, 1, size=count, endpoint=True) * augment.flip
    holes = random.integers(0, size, size=(count, 2)) if augment.cutout else np.zeros((count, 2), dtype=np.int64)
    return Draws(*map(torch.from_numpy, (order, *corners.T, flips, *holes.T)))


def batches(draws: Tensor, batch_size: int, world_size: int) -> list[Tensor]:
    """Split the draws of an epoch, N×6, into batches, B×6, for all processes together.

    The last, smaller batch is trained on too. Where it would leave a process a single image, of which batch
    normalisation may have no variance, it joins the batch before.
    """
    parts = list(draws.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) < 2 * world_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


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

    def __init__(self, split: Split, augment: Augment, normalise: Normalise, device: torch.device):
        images = torch.from_numpy(split.images).to(device)
        size = images.shape[1]
        padded = F.pad(images, (0, 0) + (augment.crop_padding,) * 4)  # N×(H+2p)×(W+2p)×3, zeros around
        crops = padded.unfold(1, size, 1).unfold(2, size, 1)  # N×(2p+1)×(2p+1)×3×H×W
        self.crops = crops.permute(0, 1, 2, 4, 5, 3)  # N×(2p+1)×(2p+1)×H×W×3
        self.labels = torch.from_numpy(split.labels).to(device)
        self.pixels = torch.arange(size, device=device)
        self.cutout, self.normalise = augment.cutout, normalise

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Gather and augment the images of B draws: float32 B×3×H×W, labels int64 B."""
        images = self.crops[draws.index, draws.top, draws.left]  # B×H×W×3
        images = torch.where(draws.flip.bool()[:, None, None, None], images.flip(2), images)
        x = self.normalise(images)
        if self.cutout:
            # The mean colour, as in the paper; in place, which keeps channels_last
            x.masked_fill_(self._hole(draws), 0)
        return x, self.labels[draws.index]

    def _hole(self, draws: Draws) -> Tensor:
        """True in the square of side `cutout` around each centre, cut off at the borders: bool B×1×H×W."""

        def covered(centre: Tensor) -> Tensor:  # B → B×H or B×W
            offset = self.pixels - (centre[:, None] - self.cutout // 2)
            return (offset >= 0) & (offset < self.cutout)

        return (covered(draws.hole_y)[:, :, None] & covered(draws.hole_x)[:, None, :])[:, None]
