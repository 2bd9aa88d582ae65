"""CUDA graphs: hundreds of kernel launches captured once and replayed as one."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

WARM_UP = 3  # calls before the capture, in which kernels are compiled, loaded and chosen


class GraphedFunction:
    """A function of one CUDA tensor, captured for each shape of it that comes and replayed from then on.

    Besides its argument, the function must read and write tensors that stay where they are, and must not wait for the
    device. A replay returns the same tensor each time, overwritten.

    Args:
        function: the function to capture.
        state: the tensors that the function changes. A capture leaves them, and torch's random state, as they were.
    """

    def __init__(self, function: Callable[[Tensor], Tensor | None], state: Iterable[Tensor]):
        self.function, self.state = function, list(state)
        self.stream = torch.cuda.Stream()  # one for all captures: cuBLAS keeps memory for each
        self.pool = torch.cuda.graph_pool_handle()  # one pool of memory for all shapes: they never run at once
        self.captured: dict[torch.Size, tuple[Tensor, torch.cuda.CUDAGraph, Tensor | None]] = {}

    def __call__(self, argument: Tensor) -> Tensor | None:
        if argument.shape not in self.captured:
            self.captured[argument.shape] = self._capture(argument)
        static, graph, result = self.captured[argument.shape]
        static.copy_(argument)
        graph.replay()
        return result

    def _capture(self, argument: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph, Tensor | None]:
        static = argument.clone()
        before = [tensor.detach().clone() for tensor in self.state]
        random = torch.cuda.get_rng_state()  # which dropout draws from
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                self.function(static)
        main.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = self.function(static)
        with torch.no_grad():
            for tensor, value in zip(self.state, before, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(random)
        return static, graph, result
