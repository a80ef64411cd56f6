"""Batches that overlap: while one is computed, the next one's inputs come in and the last one's outputs go out.

    in        copy to the device ──mark──┐
    compute                        hold ─▶ run, or replay a graph ──mark──┐
    out                                                             hold ─▶ copy to the host ──mark──▶ wait

Three streams; each does its own in order and they meet at marks only. Pure in the sense that every call to the device
goes through a `Door`, so that the order can be tested without one:

- What is uploaded, and what is downloaded, is held by its Flight until the last mark was reached. A tensor that is let
  go of earlier is given to the next batch by the allocator, while another stream still reads it.
- A graph computes between buffers of its own. Its inputs are written on the compute stream, behind the replay before.
- Outputs are copied on the compute stream, before the next batch is computed: those of a graph are its own buffers, and
  a program may write into the same memory each time.
- When a batch fails in the middle, everything under way is waited for, since its tensors are about to be let go of. A
  device that fails at that, too, is lost, whatever the fault is called.

A graph belongs to one set of input shapes, and is used for no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from workers.backends.base import Arrays, Graphs
from workers.backends.device_faults import DeviceLost

log = logging.getLogger(__name__)

Stream = Literal["in", "compute", "out"]
Shapes = tuple[tuple[int, ...], ...]
Program = Callable[..., Any]
Named = Callable[[Any], dict[str, Any]]


class Door(Protocol):
    """What is asked of a device. Nothing waits but `wait` and `settle`; tensors are the door's own."""

    def upload(self, array: Any, *, is_bf16: bool) -> Any:
        """A tensor with an array's content (stream in)."""

    def call(self, program: Program, tensors: Sequence[Any]) -> Any:
        """Run a program (compute)."""

    def capture(self, program: Program, tensors: Sequence[Any]) -> tuple[Any, Any]:
        """A graph of a program between these tensors, and the program's result in it. Waits; raises what goes wrong."""

    def replay(self, graph: Any) -> None:
        """Run a graph (compute)."""

    def overwrite(self, target: Any, source: Any) -> None:
        """Copy one tensor into another (compute)."""

    def copy_of(self, tensor: Any) -> Any:
        """A new tensor with the same content (compute)."""

    def describe(self, tensor: Any) -> Any:
        """An array of a tensor's type and shape, its content meaningless."""

    def download(self, tensor: Any, array: Any) -> None:
        """Copy a tensor into an array (out)."""

    def mark(self, stream: Stream) -> Any:
        """A mark behind everything that a stream has been given so far."""

    def hold(self, stream: Stream, mark: Any) -> None:
        """Let a stream go on only when a mark is reached."""

    def wait(self, mark: Any) -> None:
        """Block until a mark is reached; raises what the device raises."""

    def settle(self) -> None:
        """Block until the device has nothing left to do."""

    def pin(self, memory: memoryview) -> bool:
        """Tell the device of host memory that batches cross by, so that it reads and writes it itself."""

    def unpin(self) -> None:
        """Take that back."""


class _Graph(NamedTuple):
    graph: Any
    inputs: Sequence[Any]
    outputs: dict[str, Any]


class Flight:
    """A batch on its way through the device."""

    def __init__(self, door: Door, staged: Sequence[Any], results: dict[str, Any], computed: Any) -> None:
        self._door, self._computed = door, computed
        self._held: list[Any] = [staged, results]
        self._results, self._done = results, None
        self.outputs: Arrays = {name: door.describe(tensor) for name, tensor in results.items()}

    def fetch(self, into: Arrays) -> None:
        """Have the outputs copied as soon as they are computed; the arrays are the device's until `wait` returns."""
        self._held.append(into)
        self._door.hold("out", self._computed)
        for name, tensor in self._results.items():
            self._door.download(tensor, into[name])
        self._done = self._door.mark("out")

    def wait(self) -> None:
        """Block until the outputs are there; in any thread."""
        try:
            self._door.wait(self._done)
        except BaseException:
            _settle(self._door)
            raise
        finally:
            self._let_go()

    def abandon(self) -> None:
        """Wait until the device has done with the batch, whose outputs nobody wants."""
        try:
            _settle(self._door)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._held.clear()
        self._results = {}


class Pipeline:
    """Launches one program's batches. `named` gives a program's result its names; raises ValueError."""

    def __init__(self, door: Door, program: Program, inputs: Sequence[tuple[str, bool]], named: Named) -> None:
        self._door, self._program, self._named = door, program, named
        self._inputs = inputs
        self._graphs: dict[Shapes, _Graph] = {}

    def launch(self, inputs: Arrays) -> Flight:
        """Give a batch to the device."""
        door = self._door
        staged: list[Any] = []
        try:
            for name, is_bf16 in self._inputs:
                staged.append(door.upload(inputs[name], is_bf16=is_bf16))
            door.hold("compute", door.mark("in"))
            graph = self._graphs.get(tuple(inputs[name].shape for name, _ in self._inputs))
            results = self._named(door.call(self._program, staged)) if graph is None else self._replay(graph, staged)
            copies = {name: door.copy_of(tensor) for name, tensor in results.items()}
            return Flight(door, staged, copies, door.mark("compute"))
        except BaseException:
            _settle(door)
            raise

    def _replay(self, graph: _Graph, staged: Sequence[Any]) -> dict[str, Any]:
        door = self._door
        for target, source in zip(graph.inputs, staged, strict=True):
            door.overwrite(target, source)
        door.replay(graph.graph)
        return graph.outputs

    def capture(self, batches: Sequence[Arrays]) -> Graphs:
        """Make a graph for each of these batches' shapes, the largest first: smaller ones find room in its memory.

        A batch whose capture fails is run without a graph.
        """
        captured, failed = [], []
        for batch in sorted(batches, key=_rows, reverse=True):
            rows = _rows(batch)
            try:
                self._capture(batch)
            except Exception as exc:  # noqa: BLE001 - whatever a library says to a capture
                log.warning("no graph for batches of %d rows: %s: %s", rows, type(exc).__name__, exc)
                failed.append(rows)
                _settle(self._door)
            else:
                captured.append(rows)
        return Graphs(tuple(captured), tuple(failed))

    def _capture(self, batch: Arrays) -> None:
        door = self._door
        static = [door.upload(batch[name], is_bf16=is_bf16) for name, is_bf16 in self._inputs]
        door.hold("compute", door.mark("in"))
        graph, result = door.capture(self._program, static)
        shapes = tuple(batch[name].shape for name, _ in self._inputs)
        self._graphs[shapes] = _Graph(graph, static, self._named(result))

    def pin(self, memory: memoryview) -> bool:
        """Tell the device of the slots."""
        return self._door.pin(memory)

    def close(self) -> None:
        """Finish what is under way, and let go of graphs and slots."""
        try:
            self._door.settle()
        finally:
            self._graphs.clear()
            self._door.unpin()


def _settle(door: Door) -> None:
    """Wait for a device behind a failure. Raises DeviceLost: where even that fails, so does everything else."""
    try:
        door.settle()
    except Exception as exc:
        raise DeviceLost(f"{type(exc).__name__}: {exc}") from exc


def _rows(batch: Arrays) -> int:
    return len(next(iter(batch.values())))
