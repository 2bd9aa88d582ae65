"""One step. Whole trainings of twenty are compared with a plain loop in test_loop.py."""

import torch
from torch import Tensor, nn

from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.recipe import Recipe
from stages.training.step import Step
from tests.training.toys import CPU, MEAN, STD, augmented, dataset, fresh, recipe

ROWS = torch.stack(draw_epoch(1, 1, 70, 8, augmented()), 1)


def stepping(of: Recipe, network: nn.Module, place: torch.device = CPU.torch, autocast=CPU.autocast) -> Step:
    images = TrainingImages(dataset().train, of.augment, Normalise(MEAN, STD, place), place)
    return Step(CPU.place(network).to(place).train(), images, of.train, autocast)


def copied(step: Step) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in step.bare.named_parameters()}


def test_a_weight_scales_the_update_and_a_batch_of_weight_zero_leaves_the_sums_alone():
    of, changes = recipe(weight_decay=0.0), {}
    for weight in (0.0, 0.5, 1.0):
        step = stepping(of, fresh(of))
        before = copied(step)
        step(ROWS[:32], weight)
        changes[weight] = {name: p.detach() - before[name] for name, p in step.bare.named_parameters()}
        assert (step.sums[0] > 0) == (weight > 0)
    assert not any(change.any() for change in changes[0.0].values())
    for name, change in changes[1.0].items():
        torch.testing.assert_close(changes[0.5][name], change / 2, rtol=1e-3, atol=1e-7)


def test_frozen_parameters_stay_as_they_were_unused_ones_need_no_gradient_and_the_state_names_the_rest():
    network = fresh(recipe())
    network.features[0].weight.requires_grad_(False)
    network.unused = nn.Linear(2, 2)
    step = stepping(recipe(), network)
    before, tensors = copied(step), step.tensors()
    step(ROWS[:32])
    changed = {name for name, p in step.bare.named_parameters() if not p.equal(before[name])}
    assert changed == before.keys() - {"features.0.weight", "unused.weight", "unused.bias"}
    assert all(p.grad is None for p in network.parameters())
    momenta = {f"momentum.{name}" for name in before.keys() - {"features.0.weight"}}
    assert set(tensors) == {f"model.{name}" for name in network.state_dict()} | momenta
    assert all(tensors[f"momentum.{name}"].any() for name in changed)  # no copies: as they are after the step
    assert all(tensors[f"model.{name}"].equal(p) for name, p in network.named_parameters())
