"""What torch calls a CUDA graph: everything that a function starts on the device, as one thing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], Tensor]


class CudaCapture:
    """Captures functions one after the other; what they allocate lies in one pool of their own.

    They may share it because no two of them ever run at the same time, and nobody looks at what
    one has left once another one has run.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Run a function once, then capture it; the answer repeats it, into the same memory.

        Raises whatever is not possible while capturing, as waiting for the device.
        """
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            run()  # libraries set themselves up, and kernels are loaded
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            out = run()
        return _Replay(graph, out, run)


@dataclass(frozen=True, slots=True)
class _Replay:
    """A graph, and what must live as long as it does."""

    graph: torch.cuda.CUDAGraph
    out: Tensor
    run: Run
    """Holds tensors that the graph reads and that nobody else knows."""

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.out
