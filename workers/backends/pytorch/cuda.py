"""The door to a CUDA device: streams, events, graphs and pinned memory, in torch's words.

`Tensors` is what any device can do, and is tested on the CPU. `CudaDoor` adds what only CUDA has. It follows torch's
documentation of streams, graphs and pinned memory; it has not run on a device yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch

from workers.backends.pipeline import Program, Stream

log = logging.getLogger(__name__)

_warm_up_runs: Final = 3  # before a capture: libraries choose kernels and allocate workspaces in their first runs


class Tensors:
    """Copies and calls, each on the current stream."""

    def __init__(self, target: torch.device) -> None:
        self.target = target

    def upload(self, array: Any, *, is_bf16: bool) -> torch.Tensor:
        """A tensor with an array's content; BF16 comes as its 16-bit patterns."""
        return _view(array, is_bf16=is_bf16).to(self.target, non_blocking=True, copy=True)

    def call(self, program: Program, tensors: Sequence[torch.Tensor]) -> Any:
        """Run a program."""
        with torch.inference_mode():
            return program(*tensors)

    def overwrite(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy one tensor into another."""
        with torch.inference_mode():
            target.copy_(source)

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A new, dense tensor with the same content."""
        with torch.inference_mode():
            return tensor.clone(memory_format=torch.contiguous_format)

    def describe(self, tensor: torch.Tensor) -> Any:
        """An array of a tensor's type and shape that takes no memory."""
        kind = torch.uint16 if tensor.dtype == torch.bfloat16 else tensor.dtype
        return np.broadcast_to(torch.empty((), dtype=kind).numpy(), tuple(tensor.shape))

    def download(self, tensor: torch.Tensor, array: Any) -> None:
        """Copy a tensor into an array."""
        with torch.inference_mode():
            _view(array, is_bf16=tensor.dtype == torch.bfloat16).copy_(tensor, non_blocking=True)


class CudaDoor(Tensors):
    """The only device of this process."""

    def __init__(self, target: torch.device) -> None:
        super().__init__(target)
        self._streams = {name: torch.cuda.Stream(target) for name in ("in", "compute", "out")}
        self._pool = torch.cuda.graph_pool_handle()
        self._pinned = 0
        self.settle()  # the weights came on the default stream

    def upload(self, array: Any, *, is_bf16: bool) -> torch.Tensor:
        """On the stream in."""
        with torch.cuda.stream(self._streams["in"]):
            return super().upload(array, is_bf16=is_bf16)

    def call(self, program: Program, tensors: Sequence[torch.Tensor]) -> Any:
        """On the stream compute."""
        with torch.cuda.stream(self._streams["compute"]):
            return super().call(program, tensors)

    def overwrite(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """On the stream compute."""
        with torch.cuda.stream(self._streams["compute"]):
            super().overwrite(target, source)

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the stream compute."""
        with torch.cuda.stream(self._streams["compute"]):
            return super().copy_of(tensor)

    def download(self, tensor: torch.Tensor, array: Any) -> None:
        """On the stream out."""
        with torch.cuda.stream(self._streams["out"]):
            super().download(tensor, array)

    def capture(self, program: Program, tensors: Sequence[torch.Tensor]) -> tuple[Any, Any]:
        """Warm up and capture on the stream compute. All graphs share a pool: they never run at the same time.

        Errors of other threads, which may only wait for events, do not spoil a capture in this mode.
        """
        for _ in range(_warm_up_runs):
            self.call(program, tensors)
        self.settle()
        graph = torch.cuda.CUDAGraph()
        compute = self._streams["compute"]
        with (
            torch.inference_mode(),
            torch.cuda.graph(graph, pool=self._pool, stream=compute, capture_error_mode="thread_local"),
        ):
            result = program(*tensors)
        return graph, result

    def replay(self, graph: Any) -> None:
        """On the stream compute."""
        with torch.cuda.stream(self._streams["compute"]):
            graph.replay()

    def mark(self, stream: Stream) -> Any:
        """An event; waiting for it sleeps rather than spins, and holds no lock of the interpreter."""
        event = torch.cuda.Event(blocking=True)
        event.record(self._streams[stream])
        return event

    def hold(self, stream: Stream, mark: Any) -> None:
        """Let a stream wait for an event."""
        self._streams[stream].wait_event(mark)

    def wait(self, mark: Any) -> None:
        """Wait for an event."""
        mark.synchronize()

    def settle(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize(self.target)

    def pin(self, memory: memoryview) -> bool:
        """Register the mapping page by page with the driver; slower copies are all that a refusal costs."""
        address, size = np.frombuffer(memory, np.uint8).ctypes.data, memory.nbytes
        status = int(_runtime().cudaHostRegister(address, size, 0))
        if status == 0:
            self._pinned = address
            return True
        log.warning("the slots are not pinned (cudaHostRegister says %d): copies take longer", status)
        _clear_error(lambda: torch.zeros(1, device=self.target))
        return False

    def unpin(self) -> None:
        """Take the registration back, while the memory is still mapped."""
        if self._pinned:
            _runtime().cudaHostUnregister(self._pinned)
            self._pinned = 0


def _view(array: Any, *, is_bf16: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if is_bf16 else tensor


def _runtime() -> Any:
    runtime: Any = torch.cuda.cudart  # untyped where torch brings types
    return runtime()


def _clear_error(launch: Callable[[], object]) -> None:
    """CUDA remembers a failed call until somebody asks, which is the next launch; better this one than a batch's."""
    try:
        launch()
    except RuntimeError:
        log.debug("the error of the registration is taken off")
