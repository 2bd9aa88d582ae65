"""A whole training step and a prediction on tensors of a fake GPU: what a CUDA graph captures, without a GPU.

Shapes, types, strides and devices are those of CUDA; there are no values. A synchronisation with the host and a tensor
on the CPU fail. The autograd engine needs a real device, so its nodes are called from Python.
"""

import collections

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.training import step as step_module
from stages.training.augmentation import Normalise, TrainingImages
from stages.training.device import Backend
from stages.training.loop import predict
from stages.training.step import Step
from tests.training.toys import dataset, model, recipe

CUDA = torch.device("cuda", 0)


class OnDevice(TorchDispatchMode):
    """Refuses tensors on the CPU: a graph keeps the value of one for ever, or a copy of it ends the capture."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.device == CUDA, f"{function} on {tensor.device}"
        return result


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """`loss.backward()` without the engine: its nodes from the last to the first, then those of the leaves."""
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


def fused_sgd(parameters, gradients, momenta, **_) -> None:
    """The checks of the kernel; torch has no meta kernel for a rate that is a tensor."""
    for tensors in zip(parameters, gradients, momenta, strict=True):
        assert len({(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors}) == 1
    fused_sgd.updated = len(parameters)


@pytest.fixture
def fake(monkeypatch) -> FakeTensorMode:
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_fused_sgd_.tensor_lr", fused_sgd, "Meta")
        yield FakeTensorMode(allow_non_fake_inputs=True)  # while a model of real weights is moved


def build(fake: FakeTensorMode, name: str, precision: str) -> tuple[Step, Backend, Tensor]:
    of, backend = recipe(name), Backend(CUDA, precision, compile=False)
    real = model(of)
    with fake:
        network = backend.place(real).train()
        fake.allow_non_fake_inputs = False
        images = TrainingImages(dataset().train, 2, Normalise([0.5] * 3, [0.2] * 3, CUDA), CUDA)
        return (
            Step(network, images, of.train, backend.autocast),
            backend,
            torch.empty(32, 4, dtype=torch.int64, device=CUDA),
        )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_a_step_and_a_prediction_stay_on_the_gpu(fake, name, precision):
    step, backend, draws = build(fake, name, precision)
    with fake, OnDevice():
        step(draws)
        assert fused_sgd.updated == len(list(step.model.parameters()))
        images = torch.empty(20, 16, 16, 3, dtype=torch.uint8, device=CUDA)
        assert predict(step.model, images, step.images.normalise, backend).shape == (20, 10)


LOSSES = {
    "waits for the loss": lambda loss: loss * loss.item(),
    "branches on the loss": lambda loss: loss if loss > 0 else -loss,
    "multiplies by a tensor on the CPU": lambda loss: loss * torch.tensor(0.5),
}


@pytest.mark.parametrize("fault", LOSSES)
def test_a_step_that_waits_for_the_device_is_found(fake, monkeypatch, fault):
    step, _, draws = build(fake, "resnet", "bf16")
    cross_entropy = step_module.F.cross_entropy
    monkeypatch.setattr(step_module.F, "cross_entropy", lambda *args: LOSSES[fault](cross_entropy(*args)))
    found = pytest.raises(Exception, match=r"on cpu|devices|_local_scalar_dense|data-dependent|is_nonzero")
    with fake, found, OnDevice():
        step(draws)


@pytest.mark.parametrize("place", ["sums", "learning_rate", "images.labels", "images.crops", "images.normalise.std"])
def test_a_tensor_left_on_the_cpu_is_found(fake, place):
    step, _, draws = build(fake, "resnet", "bf16")
    *owners, name = place.split(".")
    owner = step
    for part in owners:
        owner = getattr(owner, part)
    with fake:
        setattr(owner, name, getattr(owner, name).cpu())
    with fake, pytest.raises((AssertionError, RuntimeError), match=r"on cpu|devices"), OnDevice():
        step(draws)
