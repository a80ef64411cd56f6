"""PyTorch programs: the only door to torch.

`programs` says which kinds of artefact there are, `pipeline` how batches overlap on a GPU; on a CPU they are run where
they stand.

Programs take and give tensors by position: inputs in the order of model.yaml, outputs in the same order, or as a dict
by name. BF16 crosses the seam as 16-bit patterns, as everywhere in Headrace. A declared module may yield; as a yielded
tuple says whose the outputs are, several outputs of one yield are a dict or a list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.tensors import BYTES
from workers.backends.base import CPU, CUDA, Arrays, Graphs, Launched, ModelContext
from workers.backends.device_faults import DeviceLost, is_lost, is_out_of_memory
from workers.backends.handlers import HandlerPackage
from workers.backends.pipeline import Door, Flight, Pipeline
from workers.backends.pytorch.cuda import CudaDoor
from workers.backends.pytorch.programs import entry, read_program


class TorchBackend:
    """Runs a program on the CPU, or on the lease's GPU."""

    def __init__(self) -> None:
        self.device = CPU
        self._target = torch.device("cpu")
        self._program: Any = None
        self._package = HandlerPackage()
        self._pipeline: Pipeline | None = None
        self._inputs: list[tuple[str, bool]] = []
        self._outputs: list[str] = []

    def load(self, context: ModelContext) -> None:
        """Read the program and put it on its device."""
        spec = context.spec
        texts = [tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.datatype == BYTES]
        if texts:
            raise ModelLoadError(
                f"{spec.key}: torch has no strings, so {texts[0]!r} cannot be BYTES; use the python backend"
            )
        torch.set_num_threads(context.threads)
        if context.device == CUDA:
            if not torch.cuda.is_available():
                raise ModelLoadError(
                    f"{spec.key}: the lease has a GPU, but torch {torch.__version__} cannot use it: install a build of "
                    "torch for its CUDA driver, or ask for device: {kind: cpu} in the deployment"
                )
            self._target = torch.device("cuda", 0)
            self.device = f"{CUDA} {torch.cuda.get_device_name(0)}"
        self._inputs = [(tensor.name, tensor.datatype == "BF16") for tensor in spec.inputs]
        self._outputs = [tensor.name for tensor in spec.outputs]
        path = context.artefact
        try:
            self._program = entry(spec, read_program(context, self._target, self._package))
        except ModelLoadError:
            raise
        except Exception as exc:
            raise ModelLoadError(
                f"{spec.key}: torch {torch.__version__} cannot load {path.name}: {type(exc).__name__}: {exc}"
            ) from exc
        if context.device == CUDA and not spec.streaming:
            self.overlap(CudaDoor(self._target))

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        """Run the program; `parameters` mean nothing to it."""
        if self._pipeline is not None:
            flight = self.launch(inputs, rows, parameters)
            into = {name: np.empty(array.shape, array.dtype) for name, array in flight.outputs.items()}
            flight.fetch(into)
            flight.wait()
            return into
        with _errors(), torch.inference_mode():
            return self._arrays(self._program(*self._tensors(inputs)))

    @property
    def is_pipelined(self) -> bool:
        """On a GPU, unless the model streams."""
        return self._pipeline is not None

    def launch(self, inputs: Arrays, rows: int, parameters: Parameters) -> Launched:
        """Give the GPU a batch."""
        if self._pipeline is None:
            raise RuntimeError("the model is not loaded, or not on a GPU")
        with _errors():
            return _Guarded(self._pipeline.launch(inputs))

    def capture(self, batches: Iterable[Arrays]) -> Graphs:
        """Make graphs for batches of these shapes."""
        if self._pipeline is None:
            return Graphs()
        with _errors():
            return self._pipeline.capture(list(batches))

    def pin(self, memory: memoryview) -> bool:
        """Tell the GPU of the slots."""
        return self._pipeline is not None and self._pipeline.pin(memory)

    def overlap(self, door: Door) -> None:
        """Run batches through a pipeline; `load` does so on a GPU."""
        self._pipeline = Pipeline(door, self._program, self._inputs, self._named)

    def stream(
        self, inputs: Arrays, rows: int, parameters: Parameters
    ) -> Generator[object, frozenset[int] | None, object]:
        """Run a module that yields; `parameters` mean nothing to it.

        Inference mode belongs to the thread, not to the generator: it is entered for each step and left before the
        engine goes on.
        """
        gone: frozenset[int] | None = None
        with _errors(), torch.inference_mode():
            steps = self._program(*self._tensors(inputs))
        try:
            while True:
                with _errors(), torch.inference_mode():
                    try:
                        part = self._part(steps.send(gone))
                    except StopIteration as end:
                        return None if end.value is None else self._arrays(end.value)
                gone = yield part
        finally:
            with torch.inference_mode():
                steps.close()

    def close(self) -> None:
        """Drop the program, which frees its memory."""
        pipeline, self._pipeline, self._program = self._pipeline, None, None
        if pipeline is not None:
            pipeline.close()
        self._package.forget()

    def _tensors(self, inputs: Arrays) -> list[torch.Tensor]:
        return [self._tensor(inputs[name], is_bf16=is_bf16) for name, is_bf16 in self._inputs]

    def _tensor(self, array: Any, *, is_bf16: bool) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.view(torch.bfloat16) if is_bf16 else tensor).to(self._target)

    def _part(self, yielded: Any) -> object:
        """Outputs by name, with the rows and the end that a tuple says besides; its form is for the engine to check."""
        if isinstance(yielded, tuple) and yielded:
            return (self._arrays(yielded[0]), *yielded[1:])
        return self._arrays(yielded)

    def _arrays(self, result: Any) -> Arrays:
        return {name: _array(tensor) for name, tensor in self._named(result).items()}

    def _named(self, result: Any) -> dict[str, Any]:
        if isinstance(result, dict):
            return result
        values = result if isinstance(result, tuple | list) else (result,)
        if len(values) != len(self._outputs):
            raise ValueError(f"the program gives {len(values)} outputs, but model.yaml declares {len(self._outputs)}")
        return dict(zip(self._outputs, values, strict=True))


class _Guarded:
    """A flight whose faults are told in the engine's words."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self.outputs = flight.outputs

    def fetch(self, into: Arrays) -> None:
        with _errors():
            self._flight.fetch(into)

    def wait(self) -> None:
        with _errors():
            self._flight.wait()

    def abandon(self) -> None:
        with _errors():
            self._flight.abandon()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The engine's words for what torch says when there is no memory, and no device any more."""
    try:
        yield
    except RuntimeError as exc:
        if isinstance(exc, torch.OutOfMemoryError) or is_out_of_memory(exc):
            raise MemoryError(str(exc)) from exc
        if is_lost(exc):
            raise DeviceLost(str(exc)) from exc
        raise


def _array(tensor: torch.Tensor) -> Any:
    here = tensor.detach().cpu()
    return here.view(torch.uint16).numpy() if here.dtype == torch.bfloat16 else np.asarray(here.numpy())
