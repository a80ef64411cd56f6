"""PyTorch programs, run eagerly: the only door to torch.

`programs` says which kinds of artefact there are.

Programs take and give tensors by position: inputs in the order of model.yaml, outputs in the same order, or as a dict
by name. BF16 crosses the seam as 16-bit patterns, as everywhere in Headrace. A declared module may yield; as a yielded
tuple says whose the outputs are, several outputs of one yield are a dict or a list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.tensors import BYTES
from workers.backends.base import CPU, CUDA, Arrays, ModelContext
from workers.backends.handlers import HandlerPackage
from workers.backends.pytorch.programs import entry, read_program


class TorchBackend:
    """Runs a program on the CPU, or on the lease's GPU."""

    def __init__(self) -> None:
        self.device = CPU
        self._target = torch.device("cpu")
        self._program: Any = None
        self._package = HandlerPackage()
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
        if context.device == CUDA and torch.cuda.is_available():
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

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        """Run the program; `parameters` mean nothing to it."""
        with _memory_errors(), torch.inference_mode():
            return self._named(self._program(*self._tensors(inputs)))

    def stream(
        self, inputs: Arrays, rows: int, parameters: Parameters
    ) -> Generator[object, frozenset[int] | None, object]:
        """Run a module that yields; `parameters` mean nothing to it.

        Inference mode belongs to the thread, not to the generator: it is entered for each step and left before the
        engine goes on.
        """
        gone: frozenset[int] | None = None
        with _memory_errors(), torch.inference_mode():
            steps = self._program(*self._tensors(inputs))
        try:
            while True:
                with _memory_errors(), torch.inference_mode():
                    try:
                        part = self._part(steps.send(gone))
                    except StopIteration as end:
                        return None if end.value is None else self._named(end.value)
                gone = yield part
        finally:
            with torch.inference_mode():
                steps.close()

    def close(self) -> None:
        """Drop the program, which frees its memory."""
        self._program = None
        self._package.forget()

    def _tensors(self, inputs: Arrays) -> list[torch.Tensor]:
        return [self._tensor(inputs[name], is_bf16=is_bf16) for name, is_bf16 in self._inputs]

    def _tensor(self, array: Any, *, is_bf16: bool) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.view(torch.bfloat16) if is_bf16 else tensor).to(self._target)

    def _part(self, yielded: Any) -> object:
        """Outputs by name, with the rows and the end that a tuple says besides; its form is for the engine to check."""
        return (
            (self._named(yielded[0]), *yielded[1:]) if isinstance(yielded, tuple) and yielded else self._named(yielded)
        )

    def _named(self, result: Any) -> Arrays:
        if isinstance(result, dict):
            return {name: _array(value) for name, value in result.items()}
        values = result if isinstance(result, tuple | list) else (result,)
        if len(values) != len(self._outputs):
            raise ValueError(f"the program gives {len(values)} outputs, but model.yaml declares {len(self._outputs)}")
        return {name: _array(value) for name, value in zip(self._outputs, values, strict=True)}


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """The engine's word for what torch says when there is no memory."""
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise MemoryError(str(exc)) from exc
    except RuntimeError as exc:
        if "can't allocate memory" in str(exc):  # the CPU allocator has no exception class of its own
            raise MemoryError(str(exc)) from exc
        raise


def _array(tensor: torch.Tensor) -> Any:
    here = tensor.detach().cpu()
    return here.view(torch.uint16).numpy() if here.dtype == torch.bfloat16 else np.asarray(here.numpy())
