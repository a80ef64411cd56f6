"""The seam between the engine and the libraries that run models.

A backend owns one model. The engine's launcher, a single thread, calls it:

    load(context)                       once; raises ModelLoadError saying what to change
    infer(inputs, rows, parameters)     once per batch; arrays by name in, arrays by name out
    close()                             once, at the end

Input arrays are views of a slot: they belong to the model until `infer` returns, and are overwritten afterwards. Output
arrays are copied into the slot at once, so they may be views of the inputs or of buffers that the model uses again.
Whatever `infer` raises fails that batch alone; MemoryError, into which each backend translates its library's
allocation failures, says that a smaller batch may succeed, and DeviceLost ends the process.

A device that computes while its host prepares the next batch has a `pipeline` besides: `launch` gives it a batch, and
whoever waits for the batch may be another thread. Answers on the link carry slot and sequence, so they may leave in any
order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy.typing as npt

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.specs import ModelSpec

Arrays = dict[str, npt.NDArray[Any]]
CPU: Final = "cpu"
CUDA: Final = "cuda:0"  # an engine sees the device of its lease and no other


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a model may know when it is loaded; a python handler's `load` gets it too.

    `folder` holds model.yaml and the artefacts, `threads` is the lease's share of cores (at least 1), `device` is
    "cpu" or "cuda:0": where the model is expected to run. `cache` is a folder for what a library compiles from these
    very artefacts; it need not exist, and without a digest of the artefacts there is none.
    """

    spec: ModelSpec
    folder: Path
    threads: int = 1
    device: str = CPU
    cache: Path | None = None

    @property
    def artefact(self) -> Path:
        """The model's file; raises ModelLoadError when it is not there."""
        path = self.folder / self.spec.artefact_name
        if not path.is_file():
            raise ModelLoadError(
                f"{self.spec.key}: {path} is not there; put the model into that file or name another in artefact:"
            )
        return path


class Backend(Protocol):
    """One model in the hands of one library."""

    @property
    def device(self) -> str:
        """Where the model really runs, known after `load`: "cpu", "cuda:0", with the device's name when known."""
        ...

    def load(self, context: ModelContext) -> None:
        """Make the model ready for `infer`. Raises ModelLoadError."""
        ...

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        """Run one batch; every input's and output's first dimension is `rows`."""
        ...

    def close(self) -> None:
        """Let go of the model; harmless when it was never loaded or is closed already."""
        ...


class StreamingBackend(Protocol):
    """What a backend has besides, if its models may yield."""

    def stream(
        self, inputs: Arrays, rows: int, parameters: Parameters
    ) -> Generator[object, frozenset[int] | None, object]:
        """Begin one batch; what it yields and is sent is said in `workers.engine.streaming`."""
        ...


class Launched(Protocol):
    """A batch that a device has been given. `fetch` once, then `wait`; or else `abandon`."""

    @property
    def outputs(self) -> Arrays:
        """Arrays of the outputs' types and shapes; their content means nothing."""
        ...

    def fetch(self, into: Arrays) -> None:
        """Have the outputs copied into these arrays when they are there."""
        ...

    def wait(self) -> None:
        """Block, in any thread, until they are. Raises what the device raises."""
        ...

    def abandon(self) -> None:
        """Block until the device has done with the batch."""
        ...


class Graphs(NamedTuple):
    """For which numbers of rows a batch is replayed from a graph, and for which no graph could be made."""

    captured: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()


class PipelinedBackend(Protocol):
    """What a backend has besides, if its device works beside the host."""

    @property
    def is_pipelined(self) -> bool:
        """Whether it does for this model; known after `load`."""
        ...

    def launch(self, inputs: Arrays, rows: int, parameters: Parameters) -> Launched:
        """Give the device a batch. Inputs belong to the device until its outputs are there."""
        ...

    def capture(self, batches: Iterable[Arrays]) -> Graphs:
        """Make graphs for batches of these shapes, once, before the first request."""
        ...

    def pin(self, memory: memoryview) -> bool:
        """Tell the device of the memory that inputs and outputs stand in; undone by `close`."""
        ...


class Sequence:
    """One step of a sequence, as a model sees it: `sequences[row]` belongs to row `row`.

    `state` is None at the start, and afterwards what the last step left there. Assign it: when a batch fails, its steps
    run again from the states that they began with, and what was changed inside an object could not be taken back.
    """

    __slots__ = ("id", "is_end", "is_start", "state")

    def __init__(self, name: str, *, is_start: bool, is_end: bool, state: Any = None) -> None:
        self.id = name
        self.is_start = is_start
        self.is_end = is_end
        self.state = state


class StatefulBackend(Protocol):
    """What a backend has besides, if its models may keep states."""

    def step(self, inputs: Arrays, rows: int, parameters: Parameters, sequences: list[Sequence]) -> Arrays:
        """Run one batch, each row a step of another sequence."""
        ...


def visible_device(environment: Mapping[str, str]) -> str:
    """The device that a lease's environment shows: "cuda:0" when it names an NVIDIA device, else "cpu"."""
    devices = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    return CUDA if devices and not devices.startswith("-") else CPU
