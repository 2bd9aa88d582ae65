"""One step. Whole trainings of twenty are compared with a plain loop in test_loop.py."""

import collections
import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.device import Device
from stages.training.loop import forward_test
from stages.training.recipe import Recipe
from stages.training.step import Step
from tests.training.toys import CPU, MEAN, STD, dataset, fresh, recipe

ROWS = torch.stack(draw_epoch(1, 1, 70, 8, recipe().augment), 1)


def stepping(of: Recipe, network: nn.Module, device: Device = CPU) -> Step:
    images = TrainingImages(dataset().train, of.augment, Normalise(MEAN, STD, device.torch), device.torch)
    return Step(device.place(network).train(), images, of.train, device.autocast)


def copied(step: Step) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in step.bare.named_parameters()}


def test_sums_are_of_the_loss_and_the_right_predictions_over_all_images_until_zeroed():
    of, expected = recipe(learning_rate=1e-9, label_smoothing=0.2), torch.zeros(2, dtype=torch.float64)
    step, plain = stepping(of, fresh(of)), CPU.place(fresh(of)).train()
    for rows in ROWS[:50].split(32):
        step(rows)
        x, labels = step.images.batch(draw_epoch(1, 1, 70, 8, of.augment)._make(rows.unbind(1)))
        logits = plain(x)
        expected += torch.stack(
            [F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2), (logits.argmax(1) == labels).sum()]
        )
    assert step.sums.dtype == torch.float64
    torch.testing.assert_close(step.sums, expected.detach(), rtol=1e-5, atol=0)


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


def test_frozen_parameters_stay_as_they_were_and_unused_ones_need_no_gradient():
    of = recipe()
    network = fresh(of)
    network.features[0].weight.requires_grad_(False)
    network.unused = nn.Linear(2, 2)
    step = stepping(of, network)
    before = copied(step)
    step(ROWS[:32])
    changed = {name for name, p in step.bare.named_parameters() if not p.equal(before[name])}
    assert changed == before.keys() - {"features.0.weight", "unused.weight", "unused.bias"}
    assert step.momentum.keys() == before.keys() - {"features.0.weight"}
    assert all(p.grad is None for p in network.parameters())


def test_its_state_names_every_weight_statistic_and_momentum_without_copies():
    step = stepping(recipe(), fresh(recipe()))
    parameters = dict(step.bare.named_parameters())
    tensors = step.tensors()
    assert set(tensors) == {f"model.{name}" for name in step.bare.state_dict()} | {
        f"momentum.{name}" for name in parameters
    }
    step(ROWS[:32])
    assert all(tensors[f"model.{name}"].equal(p) for name, p in parameters.items())
    assert all(tensors[f"momentum.{name}"].any() for name in parameters)


def test_a_compiled_forward_pass_takes_the_place_of_its_own():
    step, seen = stepping(recipe(), fresh(recipe())), []
    step(ROWS[:32], forward=lambda rows: (seen.append(rows), step.forward(rows))[1])
    assert seen[0].equal(ROWS[:32])


CUDA = Device(torch.device("cuda", 0), "bf16", compile=False)


class OnDevice(TorchDispatchMode):
    """Refuse tensors on the CPU: a CUDA graph keeps the value of one for ever, or a copy of it ends the capture."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.device == CUDA.torch, f"{function} on {tensor.device}"
        return result


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """`loss.backward()` without the engine, which needs a real device: its nodes from the last to the first."""
    nodes, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        following = {node for node, _ in stack.pop().next_functions if node} - nodes
        nodes |= following
        stack += following
    gradients = collections.defaultdict(dict, {loss.grad_fn: {0: torch.ones_like(loss)}})
    for node in sorted(nodes, key=lambda node: node._sequence_nr() if node.next_functions else -1, reverse=True):
        results = node(*(gradients[node].get(i) for i in range(len(node._input_metadata))))
        for (to, i), gradient in zip(node.next_functions, tree_leaves(results, lambda x: x is None), strict=False):
            if to and gradient is not None:  # the engine, too, sums what was broadcast, and casts
                gradient = gradient.sum_to_size(to._input_metadata[i].shape).to(to._input_metadata[i].dtype)
                gradients[to][i] = gradients[to][i] + gradient if i in gradients[to] else gradient


@pytest.fixture
def fake(monkeypatch):
    """A fake GPU for a whole step: shapes, types, strides and devices are those of CUDA, and there are no values.

    Whatever would wait for the device fails. Torch has no meta kernel for fused SGD with a rate that is a tensor; the
    stand-in checks what the kernel does, and keeps the names of what it updates.
    """
    updated: list[int] = []

    def fused_sgd(parameters, gradients, momenta, **_) -> None:
        for tensors in zip(parameters, gradients, momenta, strict=True):
            assert len({(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors}) == 1
        updated.append(len(parameters))

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(Tensor, "backward", backward)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_fused_sgd_.tensor_lr", fused_sgd, "Meta")
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # while a model of real weights is moved
        mode.updated = updated
        yield mode


@pytest.mark.parametrize("left", [None, "sums", "learning_rate", "images.labels", "images.crops", "images.pixels"])
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_a_step_and_a_test_stay_on_the_gpu_and_what_is_left_on_the_cpu_is_found(fake, name, left):
    of = recipe(name, augment=copy.copy(recipe().augment).model_copy(update={"cutout": 3}))
    real = fresh(of)
    with fake:
        step = stepping(of, real, CUDA)
        fake.allow_non_fake_inputs = False
        rows = torch.empty(32, 6, dtype=torch.int64, device=CUDA.torch)
        if left:
            owner = step.images if "." in left else step
            setattr(owner, left.rpartition(".")[2], getattr(owner, left.rpartition(".")[2]).cpu())
            with pytest.raises((AssertionError, RuntimeError), match=r"on cpu|devices"), OnDevice():
                step(rows)
        else:
            with OnDevice():
                step(rows)
                x = step.images.normalise(torch.empty(20, 8, 8, 3, dtype=torch.uint8, device=CUDA.torch))
                assert forward_test(step.model, x, CUDA).shape == (20, 4)
            assert fake.updated == [len(list(step.model.parameters()))]
