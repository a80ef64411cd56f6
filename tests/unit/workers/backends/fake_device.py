"""A device of three streams that runs what it was given as late, and in as odd an order, as its marks allow.

Every tensor has memory of its own, full of rubbish until something is written to it, and again as soon as the tensor is
let go of: the allocator gives it to somebody else, in the order of the stream that it came from.
"""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.backends.pipeline import Program, Stream

RUBBISH = -12345.0
Array = npt.NDArray[Any]


class FakeTensor:
    """Device memory; `array` is for operations that run, not for whoever gives them."""

    def __init__(self, device: FakeDevice, shape: Sequence[int], stream: Stream, *, in_graph: bool = False) -> None:
        self.array: Array = np.full(tuple(shape), RUBBISH)
        self.shape = tuple(shape)
        if not in_graph:
            weakref.finalize(self, device.give, stream, _spoiler(self.array))


def _spoiler(array: Array) -> Callable[[], None]:
    return lambda: array.fill(RUBBISH)


class FakeDevice:
    """The Door to it. `deaf` are streams that do not heed marks, as if the code had forgotten to hold them."""

    def __init__(self, seed: int, deaf: frozenset[str] = frozenset()) -> None:
        self._dice, self._deaf = random.Random(seed), deaf
        self._streams: dict[str, deque[Callable[[], bool]]] = {name: deque() for name in ("in", "compute", "out")}
        self.log: list[str] = []
        self.refuse_rows: frozenset[int] = frozenset()
        self.memory: memoryview | None = None

    def give(self, stream: Stream, operation: Callable[[], None]) -> None:
        """Append to a stream."""

        def run() -> bool:
            operation()
            return True

        self._streams[stream].append(run)

    def _run_one(self) -> bool:
        ready = [name for name, queue in self._streams.items() if queue]
        self._dice.shuffle(ready)
        for name in ready:
            if self._streams[name][0]():
                self._streams[name].popleft()
                return True
        return False

    # --- the door -----------------------------------------------------------------------------------------------------

    def upload(self, array: Array, *, is_bf16: bool) -> FakeTensor:
        self.log.append("upload")
        tensor = FakeTensor(self, array.shape, "in")
        inside = tensor.array
        self.give("in", lambda: np.copyto(inside, array))
        return tensor

    def call(self, program: Program, tensors: Sequence[FakeTensor]) -> dict[str, FakeTensor]:
        self.log.append("call")
        return self._compute(program, tensors, in_graph=False)[0]

    def _compute(
        self, program: Program, tensors: Sequence[FakeTensor], *, in_graph: bool
    ) -> tuple[dict[str, FakeTensor], Callable[[], None]]:
        shapes = {name: value.shape for name, value in program(*(np.zeros(t.shape) for t in tensors)).items()}
        results = {name: FakeTensor(self, shape, "compute", in_graph=in_graph) for name, shape in shapes.items()}
        sources, targets = [t.array for t in tensors], {name: t.array for name, t in results.items()}

        def run() -> None:
            for name, value in program(*sources).items():
                np.copyto(targets[name], value)

        if not in_graph:
            self.give("compute", run)
        return results, run

    def capture(self, program: Program, tensors: Sequence[FakeTensor]) -> tuple[Any, dict[str, FakeTensor]]:
        self.log.append(f"capture {tensors[0].shape[0]}")
        if tensors[0].shape[0] in self.refuse_rows:
            raise RuntimeError("operation not permitted when stream is capturing")
        results, run = self._compute(program, tensors, in_graph=True)
        return run, results

    def replay(self, graph: Any) -> None:
        self.log.append("replay")
        self.give("compute", graph)

    def overwrite(self, target: FakeTensor, source: FakeTensor) -> None:
        self.log.append("overwrite")
        to, content = target.array, source.array
        self.give("compute", lambda: np.copyto(to, content))

    def copy_of(self, tensor: FakeTensor) -> FakeTensor:
        self.log.append("copy")
        copy = FakeTensor(self, tensor.shape, "compute")
        to, content = copy.array, tensor.array
        self.give("compute", lambda: np.copyto(to, content))
        return copy

    def describe(self, tensor: FakeTensor) -> Array:
        return np.broadcast_to(np.zeros(()), tensor.shape)

    def download(self, tensor: FakeTensor, array: Array) -> None:
        self.log.append("download")
        content = tensor.array
        self.give("out", lambda: np.copyto(array, content))

    def mark(self, stream: Stream) -> list[bool]:
        self.log.append(f"mark {stream}")
        mark: list[bool] = []
        self.give(stream, lambda: mark.append(True))
        return mark

    def hold(self, stream: Stream, mark: list[bool]) -> None:
        self.log.append(f"hold {stream}")
        if stream not in self._deaf:
            self._streams[stream].append(lambda: bool(mark))

    def wait(self, mark: list[bool]) -> None:
        self.log.append("wait")
        while not mark:
            assert self._run_one(), "nothing is left to do, and the mark is not reached"

    def settle(self) -> None:
        self.log.append("settle")
        while self._run_one():
            pass

    def pin(self, memory: memoryview) -> bool:
        self.memory = memory
        return True

    def unpin(self) -> None:
        self.memory = None
