import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from stages.common.dataset import Split
from stages.training.augmentation import Normalise, TrainingImages, draw_epoch

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
CPU = torch.device("cpu")


def random_split(count: int, size: int) -> Split:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Split(images, random.integers(0, 10, count))


def torchvision_batch(split: Split, draws: torch.Tensor, padding: int) -> torch.Tensor:
    """The batch as torchvision makes it, one image after the other."""
    size, batch = split.images.shape[1], []
    for index, top, left, flipped in draws.tolist():
        image = torch.from_numpy(split.images[index]).permute(2, 0, 1)
        image = reference.crop(reference.pad(image, [padding]), top, left, size, size)
        image = reference.horizontal_flip(image) if flipped else image
        batch.append(reference.normalize(reference.to_dtype(image, torch.float32, scale=True), MEAN, STD))
    return torch.stack(batch)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_batch_is_what_torchvision_pads_crops_flips_and_normalises(padding):
    split = random_split(5, size=8)
    corners = itertools.product([0, padding, 2 * padding], [0, padding, 2 * padding], [0, 1])
    draws = torch.tensor([[index % 5, *corner] for index, corner in enumerate(corners)])
    x, labels = TrainingImages(split, padding, Normalise(MEAN, STD, CPU), CPU).batch(draws)
    torch.testing.assert_close(x, torchvision_batch(split, draws, padding), rtol=0, atol=1e-6)
    assert labels.tolist() == [split.labels[index] for index in draws[:, 0]]


def test_a_batch_is_in_channels_last_layout():
    x, _ = TrainingImages(random_split(4, size=8), 4, Normalise(MEAN, STD, CPU), CPU).batch(
        draw_epoch(0, 1, 4, crop_padding=4, flip=True)
    )
    assert x.shape == (4, 3, 8, 8)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_takes_every_image_once_with_crops_over_the_whole_range_and_half_of_them_flipped():
    draws = draw_epoch(seed=42, epoch=1, count=10_000, crop_padding=4, flip=True)
    assert sorted(draws[:, 0].tolist()) == list(range(10_000))
    for column in (1, 2):
        counts = torch.bincount(draws[:, column], minlength=9)
        assert len(counts) == 9  # offsets 0 to 8
        assert counts.min() > 1111 - 5 * 32  # expected 1,111, standard deviation 31.4
        assert counts.max() < 1111 + 5 * 32
    assert set(draws[:, 3].tolist()) == {0, 1}
    assert abs(draws[:, 3].sum() - 5000) < 5 * 50


def test_without_flip_or_padding_only_the_order_is_random():
    draws = draw_epoch(seed=42, epoch=1, count=100, crop_padding=0, flip=False)
    assert draws[:, 1:].count_nonzero() == 0
    assert draws[:, 0].tolist() != list(range(100))


@pytest.mark.parametrize("seed", [42, -1, 2**70])
def test_an_epochs_draws_follow_from_seed_and_epoch_alone(seed):
    first = draw_epoch(seed, 3, 50, 4, True)
    np.random.seed(0)
    torch.manual_seed(0)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(draw_epoch(seed, 3, 50, 4, True), first)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert not torch.equal(draw_epoch(seed, 4, 50, 4, True), first)
    assert not torch.equal(draw_epoch(seed + 1, 3, 50, 4, True), first)


def test_flipping_does_not_change_order_and_crops():
    assert torch.equal(draw_epoch(7, 1, 50, 4, True)[:, :3], draw_epoch(7, 1, 50, 4, False)[:, :3])
