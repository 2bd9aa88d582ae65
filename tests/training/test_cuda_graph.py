"""Capture and replay by CPU twins of CUDA's streams and graphs, and on a GPU where there is one."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from stages.training.cuda_graph import GraphedFunction
from stages.training.device import Device
from stages.training.distributed import Processes
from tests.training.toys import dataset, dropping, fresh, recipe, same, states

DATA = dataset()


class Graph(TorchDispatchMode):
    """The twin of torch.cuda.CUDAGraph: operations without the Python between them, on tensors that stay in place."""

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
        LOG.append("replay")
        for function, args, kwargs, results in self.operations:
            for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@dataclass
class Stream:
    """The twin of torch.cuda.Stream, which writes down who waits for whom."""

    name: str = "side"

    def wait_stream(self, other: "Stream") -> None:
        LOG.append(f"{self.name} waits for {other.name}")


LOG: list[str] = []
current = [Stream("main")]


@contextlib.contextmanager
def on(stream: Stream) -> Iterator[None]:
    """The twin of torch.cuda.stream."""
    current.append(stream)
    yield
    current.pop()


@contextlib.contextmanager
def capture(graph: Graph, pool: object, stream: Stream) -> Iterator[None]:
    """The twin of torch.cuda.graph."""
    LOG.append("capture")
    with on(stream), graph:
        yield


@pytest.fixture(autouse=True)
def twins(request, monkeypatch) -> None:
    """Twins in place of CUDA, but for the tests of a GPU."""
    LOG.clear()
    if request.node.get_closest_marker("cuda"):
        return
    for name, twin in {
        "graph_pool_handle": object, "Stream": Stream, "current_stream": lambda: current[-1], "CUDAGraph": Graph,
        "graph": capture, "stream": on, "get_rng_state": torch.get_rng_state, "set_rng_state": torch.set_rng_state,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, twin)


class Capturing(Device):
    """The CPU, replaying as a GPU does."""

    def graphed(self, function, state):
        return GraphedFunction(function, state)


def test_each_shape_is_captured_once_after_a_warm_up_on_the_same_side_stream_and_each_stream_waits_for_the_other():
    def function(argument: Tensor) -> Tensor:
        LOG.append(f"call on {current[-1].name}")
        return argument + 1

    graphed, captured = GraphedFunction(function, []), []
    arguments = [torch.arange(count) + 10 * number for number, count in enumerate((3, 2, 3, 2))]
    for argument in arguments:
        LOG.clear()
        assert graphed(argument).equal(argument + 1)
        captured.append([step for step, _ in itertools.groupby(LOG)])
    first = ["side waits for main", "call on side", "main waits for side", "capture", "call on side", "replay"]
    assert captured == [first, first, ["replay"], ["replay"]]
    assert arguments[0].tolist() == [0, 1, 2]  # the caller's, which no replay may write to


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_replay_computes_with_its_own_argument_and_leaves_no_trace_of_warming_up(device):
    """Neither in the state nor in the random numbers: the first round captures, the second does not."""
    total, drawn = torch.zeros(2, device=device), torch.zeros(2, device=device)

    def add(argument: Tensor) -> Tensor:
        total.add_(argument)
        drawn.copy_(torch.rand(2, device=device))
        return 2 * argument

    graphed, results, draws = GraphedFunction(add, [total]), [], []
    for _ in range(2):
        torch.manual_seed(5)
        for argument in ([1.0, 2.0], [10.0, 20.0]):
            results.append(graphed(torch.tensor(argument, device=device)).tolist())
            draws.append(drawn.tolist())
    assert results == [[2, 4], [20, 40]] * 2
    assert total.tolist() == [22, 44]
    assert draws[:2] == draws[2:]
    assert draws[0] != draws[1]


@pytest.mark.parametrize("name", ["cnn", "resnet", "dropout"])
def test_a_training_by_replays_has_the_bytes_of_an_eager_one(name):
    """Its rates, batches of two sizes, masks, statistics, momentum and tests of each epoch; also when it is resumed."""
    of = recipe("resnet" if name == "resnet" else "cnn", epochs=3)
    build = dropping if name == "dropout" else lambda: fresh(of)
    eager = states(build(), DATA, of)
    capturing = Capturing(torch.device("cpu"), "fp32", compile=False)
    replayed = states(build(), DATA, of, capturing)
    assert LOG.count("capture") == 3  # batches of 32, the last one of 6, the test images
    assert all(same(*pair) for pair in zip(replayed, eager, strict=True))
    (*_, resumed) = states(build(), DATA, of, capturing, replayed[0])
    assert same(resumed, eager[-1])


def test_one_process_on_a_gpu_captures_and_no_other():
    devices = [
        Device(torch.device(p), "fp32", False, Processes(0, n)) for p, n in (("cuda", 1), ("cuda", 2), ("cpu", 1))
    ]
    assert [isinstance(device.graphed(torch.neg, []), GraphedFunction) for device in devices] == [True, False, False]
