"""Capture and replay, by CPU twins of CUDA's graphs: what a capture records is run again on the same memory."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from stages.training.cuda_graph import WARM_UP, Replayed
from stages.training.device import Backend
from stages.training.distributed import Processes
from stages.training.loop import train
from tests.training.toys import CPU, dataset, model, recipe

DATA = dataset(train=100, test=20)


class Graph(TorchDispatchMode):
    """The twin of torch.cuda.CUDAGraph: operations without the Python between them, on tensors that stay in place."""

    captures: list["Graph"] = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), "the host waits for the device"
        results = function(*args, **(kwargs or {}))
        same_memory = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}, results))
        self.operations.append((function, *same_memory))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, results in self.operations:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        """Everything on a CPU is in order."""


@contextlib.contextmanager
def capture(graph: Graph, pool: object) -> Iterator[None]:
    Graph.captures.append(graph)
    with graph:
        yield


class Capturing(Backend):
    """The CPU, replaying as a GPU does."""

    def replayed(self, function, state):
        return Replayed(function, state)


@pytest.fixture
def twins(monkeypatch) -> list[Graph]:
    """CPU twins in place of CUDA; the captures made so far."""
    monkeypatch.setattr(Graph, "captures", [])
    for name, twin in {
        "graph_pool_handle": object, "Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "graph": capture,
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, twin)
    return Graph.captures


def test_a_replay_computes_with_its_own_argument_and_leaves_no_trace_of_warming_up(twins):
    total, calls = torch.zeros(2), []

    def add(argument: Tensor) -> Tensor:
        calls.append(argument)
        total.add_(argument)
        return 2 * argument

    replayed = Replayed(add, [total])
    assert replayed(torch.tensor([1.0, 2.0])).tolist() == [2, 4]
    assert total.tolist() == [1, 2]
    assert replayed(torch.tensor([10.0, 20.0])).tolist() == [20, 40]
    assert total.tolist() == [11, 22]
    assert len(calls) == WARM_UP + 1


def test_each_shape_is_captured_once(twins):
    replayed = Replayed(lambda argument: argument + 1, [])
    for count in (3, 2, 3, 2):
        assert replayed(torch.arange(count)).tolist() == [1, 2, 3][:count]
    assert len(twins) == 2


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_a_training_by_replays_has_the_bytes_of_an_eager_one(twins, name):
    """Its rates, batches of two sizes, statistics, momentum and tests of each epoch, as no first batch would have."""
    of = recipe(name, epochs=3)
    eager = train(model(of), DATA, of, CPU)
    replayed = train(model(of), DATA, of, Capturing(CPU.device, "fp32", compile=False))
    assert len(twins) == 3  # batches of 32, the last one of 4, the test images
    assert replayed.history == eager.history
    assert all(torch.equal(tensor, eager.tensors[key]) for key, tensor in replayed.tensors.items())
    assert all(torch.equal(tensor, eager.best_weights[key]) for key, tensor in replayed.best_weights.items())


def test_one_process_on_a_gpu_replays_and_no_other(twins):
    def function(argument: Tensor) -> Tensor:
        return argument

    for name, world_size, replays in (("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False), ("cpu", 2, False)):
        backend = Backend(torch.device(name), "fp32", compile=False, processes=Processes(0, world_size))
        assert isinstance(backend.replayed(function, []), Replayed) == replays


@pytest.mark.cuda
def test_on_a_gpu_a_replay_computes_with_its_own_argument_and_leaves_no_trace_of_warming_up():
    total = torch.zeros(2, device="cuda")

    def add(argument: Tensor) -> Tensor:
        total.add_(argument)
        return 2 * argument

    replayed = Replayed(add, [total])
    for argument, result, expected in (([1.0, 2.0], [2, 4], [1, 2]), ([10.0, 20.0], [20, 40], [11, 22])):
        assert replayed(torch.tensor(argument, device="cuda")).tolist() == result
        assert total.tolist() == expected
