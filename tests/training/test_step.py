import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.step import Step
from tests.training.toys import CPU, MEAN, STD, dataset, model, recipe

DATA = dataset()  # ten steps an epoch, the last batch of 22 images


def prepared(image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return vision.normalize(vision.to_dtype(image, dtype, scale=True), MEAN, STD)


class Double(TrainingImages):
    """The same batches in float64."""

    def batch(self, draws):
        images = super().batch(draws)[0].double()
        exact = torch.stack([self._exact(*row) for row in draws.tolist()])
        assert torch.allclose(images, exact, atol=1e-6)  # float32 holds seven digits
        return exact.to(memory_format=torch.channels_last), self.labels[draws[:, 0]]

    def _exact(self, index: int, top: int, left: int, flipped: int) -> torch.Tensor:
        image = torch.from_numpy(DATA.train.images[index]).permute(2, 0, 1)
        image = vision.crop(vision.pad(image, [2]), top, left, 16, 16)
        return prepared(vision.horizontal_flip(image) if flipped else image, torch.float64)


def build(of, network: torch.nn.Module, images: type = TrainingImages) -> Step:
    augmented = images(DATA.train, of.augment.crop_padding, Normalise(MEAN, STD, CPU.device), CPU.device)
    return Step(CPU.place(network).train(), augmented, of.train, CPU.autocast)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_twenty_steps_agree_with_a_plain_loop(name):
    """In float64, in which rounding does not grow to anything: torch's own SGD on torchvision's crops and flips."""
    of = recipe(name, seed=int(np.random.default_rng().integers(1000)))  # it must hold for any
    ours, plain = model(of).double(), copy.deepcopy(model(of)).double().train()
    step = build(of, ours, Double)
    rate = step.learning_rate.item()  # 0.02 in float32
    optimizer = torch.optim.SGD(plain.parameters(), rate, 0.9, weight_decay=5e-4, fused=False)
    losses = []
    for epoch in (1, 2):
        for batch in draw_epoch(of.seed, epoch, len(DATA.train.labels), 2, True).split(32):
            step.sums.zero_()
            step(batch)
            x, y = step.images.batch(batch)
            optimizer.zero_grad()
            loss = F.cross_entropy(plain(x.contiguous()), y)
            loss.backward()
            optimizer.step()
            losses.append((step.sums[0].item() / len(batch), loss.item()))
    assert len(losses) == 20
    for found, expected in losses:
        assert found == pytest.approx(expected, abs=1e-9)


def test_the_sums_are_those_of_loss_and_correct_predictions_over_the_images():
    of = recipe()
    step, network = build(of, model(of)), model(of).train()
    draws = draw_epoch(1, 1, 310, 2, True)
    with torch.no_grad():
        x, y = step.images.batch(draws[:32])
        logits = network(x)
    step(draws[:32])
    assert step.sums.tolist() == pytest.approx(
        [F.cross_entropy(logits, y, reduction="sum").item(), (logits.argmax(1) == y).sum().item()], rel=1e-5
    )


def test_a_batch_of_weight_zero_changes_nothing_but_statistics():
    of = recipe(weight_decay=0.0)
    step = build(of, model(of))
    before = {name: tensor.clone() for name, tensor in step.model.named_parameters()}
    step(draw_epoch(1, 1, 310, 2, True)[:32], weight=0.0)
    assert step.sums.tolist() == [0, 0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.model.named_parameters())


def test_the_learning_rate_of_a_step_is_the_one_filled_in():
    """One step of SGD without momentum yet: the update is the rate times the gradient plus weight decay."""
    of = recipe("cnn")
    first, second = build(of, model(of)), build(of, model(of))
    before = first.model.fc.weight.detach().clone()
    draws = draw_epoch(1, 1, 310, 2, True)[:32]
    first.learning_rate.fill_(0.1)
    second.learning_rate.fill_(0.3)
    first(draws)
    second(draws)
    torch.testing.assert_close(second.model.fc.weight - before, 3 * (first.model.fc.weight - before))


def test_the_state_names_every_weight_statistic_and_momentum():
    step = build(recipe("cnn"), model(recipe("cnn")))
    weights = {f"model.{name}" for name in step.model.state_dict()}
    assert set(step.tensors()) == weights | {f"momentum.{name}" for name, _ in step.model.named_parameters()}
    step(draw_epoch(1, 1, 310, 2, True)[:32])
    assert all(
        step.tensors()[f"momentum.{name}"].any() for name, _ in step.model.named_parameters() if "weight" in name
    )
