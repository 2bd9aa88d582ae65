import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from torchvision.transforms.v2 import functional as vision

from stages.training.augmentation import Draws, Normalise, TrainingImages, batches, draw_epoch
from tests.training.toys import CPU, MEAN, STD, augmented, dataset

SEEDS = st.integers(-(2**63), 2**63 - 1)
PADDING, EPOCHS, IMAGES, SIZE = 2, 120, 300, 8
ALL = augmented(PADDING, flip=True, cutout=3)


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """The draws of many epochs, each field EPOCHS×IMAGES, one column an image; `place` is its place in the order."""
    epochs = [draw_epoch(42, epoch, IMAGES, SIZE, ALL) for epoch in range(1, EPOCHS + 1)]
    by_image = [np.argsort(draws.index.numpy()) for draws in epochs]
    fields = {
        name: np.stack([getattr(draws, name).numpy()[order] for draws, order in zip(epochs, by_image, strict=True)])
        for name in Draws._fields
    }
    return fields | {"place": np.stack(by_image)}


@given(SEEDS, st.integers(1, 10_000), st.integers(1, 60), st.integers(0, 3), st.booleans(), st.integers(0, 2))
def test_an_epoch_takes_each_image_once_and_every_draw_is_in_its_range(seed, epoch, count, padding, flip, cutout):
    draws = draw_epoch(seed, epoch, count, SIZE, augmented(padding, flip, cutout))
    assert sorted(draws.index.tolist()) == list(range(count))
    hole = SIZE - 1 if cutout else 0
    for field, most in zip(draws[1:], (2 * padding, 2 * padding, flip, hole, hole), strict=True):
        assert (field.dtype, field.shape) == (torch.int64, (count,))
        assert 0 <= field.min() <= field.max() <= most


def test_all_pairs_of_top_and_left_all_centres_of_holes_and_both_flips_are_about_equally_frequent(drawn):
    corners = np.bincount((drawn["top"] * (2 * PADDING + 1) + drawn["left"]).ravel(), minlength=25)
    holes = np.bincount((drawn["hole_y"] * SIZE + drawn["hole_x"]).ravel(), minlength=SIZE**2)
    assert (len(corners), len(holes)) == ((2 * PADDING + 1) ** 2, SIZE**2)
    assert min(chisquare(corners).pvalue, chisquare(holes).pvalue) > 1e-4
    for axis, count in ((0, EPOCHS), (1, IMAGES)):  # of each image, and in each epoch
        assert np.abs(drawn["flip"].mean(axis) - 0.5).max() < 5 * 0.5 / count**0.5


def test_no_draw_tells_anything_about_another_the_image_its_place_the_epoch_or_the_epoch_before(drawn):
    """Contingency tables of all pairs, also of the same image in two epochs in turn."""
    columns = {name: drawn[name] for name in ("top", "left", "flip", "hole_y", "hole_x")}
    columns |= {f"{name} before": np.roll(drawn[name], 1, axis=0) for name in ("top", "left", "flip", "hole_y")}
    columns |= {"place": drawn["place"] % 4, "place before": np.roll(drawn["place"], 1, axis=0) % 4}
    columns["image"], columns["epoch"] = np.indices((EPOCHS, IMAGES))[::-1] % 4
    columns["top + left"] = (drawn["top"] + drawn["left"]) % 2
    for one, other in itertools.combinations(columns, 2):
        if {one, other} not in ({"image", "epoch"}, {"top", "top + left"}, {"left", "top + left"}):
            table = np.zeros((SIZE, SIZE))
            np.add.at(table, (columns[one].ravel(), columns[other].ravel()), 1)
            table = table[table.any(1)][:, table.any(0)]
            assert chi2_contingency(table).pvalue > 1e-5, f"{one} and {other}"


def test_an_epochs_draws_follow_from_the_arguments_alone_and_other_seeds_and_epochs_have_other_draws():
    first, state = torch.stack(draw_epoch(42, 3, 50, SIZE, ALL)), torch.get_rng_state()
    assert torch.stack(draw_epoch(42, 3, 50, SIZE, ALL)).equal(first)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = [(1, 1), (1, 2), (2, 1), (-1, 1), (2**32 + 1, 1), (2**63 - 1, 1), (-(2**63), 1)]
    drawn = [draw_epoch(seed, epoch, 50, SIZE, ALL) for seed, epoch in pairs]
    for field in Draws._fields:
        assert len({tuple(getattr(draws, field).tolist()) for draws in drawn}) == len(pairs), field


@pytest.mark.parametrize(("less", "off"), [({"flip": False}, {"flip"}), ({"cutout": 0}, {"hole_y", "hole_x"})])
def test_what_is_turned_off_leaves_the_other_draws_as_they_were(less, off):
    full, without = (draw_epoch(7, 1, 50, SIZE, augmented(**{"cutout": 3} | changes)) for changes in ({}, less))
    assert {name for name in Draws._fields if not torch.equal(getattr(full, name), getattr(without, name))} == off


def cut_out(image: torch.Tensor, centre_y: int, centre_x: int, side: int) -> torch.Tensor:
    """Zero the pixels of a square, one after the other; that of an even side reaches a pixel further up and left."""
    half = 0.5 * (side % 2 == 0)
    for y, x in itertools.product(range(SIZE), range(SIZE)):
        if abs(y + half - centre_y) < side / 2 and abs(x + half - centre_x) < side / 2:
            image[:, y, x] = 0
    return image


@pytest.mark.parametrize("cutout", [0, 1, 2, SIZE])
@pytest.mark.parametrize("padding", [0, 4])
def test_a_batch_is_what_torchvision_pads_crops_flips_and_normalises_and_a_loop_cuts_out(padding, cutout):
    split = dataset(train=5).train
    offsets = {0, padding, 2 * padding}
    rows = list(itertools.product(offsets, offsets, [0, 1], [0, 3, SIZE - 1], [0, 4, SIZE - 1]))
    draws = Draws(*torch.tensor([[number % 5, *row] for number, row in enumerate(rows)]).unbind(1))
    expected = []
    for index, top, left, flip, y, x in torch.stack(draws, 1).tolist():
        image = torch.from_numpy(split.images[index]).permute(2, 0, 1)
        image = vision.crop(vision.pad(image, [padding]), top, left, SIZE, SIZE)
        image = vision.horizontal_flip(image) if flip else image
        image = vision.normalize(vision.to_dtype(image, torch.float32, scale=True), MEAN, STD)
        expected.append(cut_out(image, y, x, cutout))
    images = TrainingImages(split, augmented(padding, cutout=cutout), Normalise(MEAN, STD, CPU.torch), CPU.torch)
    x, labels = images.batch(draws)
    assert (len(images), x.dtype) == (5, torch.float32)
    torch.testing.assert_close(x, torch.stack(expected), rtol=0, atol=1e-6)
    assert labels.tolist() == [split.labels[index] for index in draws.index]
    assert x.is_contiguous(memory_format=torch.channels_last)


@given(st.integers(1, 200), st.integers(2, 40), st.integers(1, 5))
def test_batches_are_all_draws_in_order_and_none_leaves_a_process_a_single_image(count, batch_size, world_size):
    draws = torch.arange(6 * count).view(count, 6)
    parts = batches(draws, batch_size, world_size)
    assert torch.cat(parts).equal(draws)
    assert all(len(part) == batch_size for part in parts[:-1])
    last = len(parts[-1])
    assert min(count, 2 * world_size, batch_size) <= last < batch_size + 2 * world_size
    if count % batch_size >= 2 * world_size:  # large enough for a step of its own
        assert last == count % batch_size
