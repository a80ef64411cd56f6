"""PyTorch programs, run eagerly: the only door to torch.

TorchScript archives and `torch.export` programs are code that brings its own weights. Which of them a file is shows in
its content, not in its suffix; a pickled module is refused, because unpickling runs whatever the file says.

Programs take and give tensors by position: inputs in the order of model.yaml, outputs in the same order, or as a dict
by name. BF16 crosses the seam as 16-bit patterns, as everywhere in Headrace.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.tensors import BYTES
from workers.backends.base import CPU, CUDA, Arrays, ModelContext


class TorchBackend:
    """Runs a program on the CPU, or on the lease's GPU."""

    def __init__(self) -> None:
        self.device = CPU
        self._target = torch.device("cpu")
        self._program: Any = None
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
            self._program = _read_program(path, self._target)
        except ModelLoadError:
            raise
        except Exception as exc:
            raise ModelLoadError(
                f"{spec.key}: torch {torch.__version__} cannot load {path.name}: {type(exc).__name__}: {exc}"
            ) from exc

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        """Run the program; `parameters` mean nothing to it."""
        try:
            with torch.inference_mode():
                tensors = [self._tensor(inputs[name], is_bf16=is_bf16) for name, is_bf16 in self._inputs]
                return self._named(self._program(*tensors))
        except torch.OutOfMemoryError as exc:
            raise MemoryError(str(exc)) from exc
        except RuntimeError as exc:
            if "can't allocate memory" in str(exc):  # the CPU allocator has no exception class of its own
                raise MemoryError(str(exc)) from exc
            raise

    def close(self) -> None:
        """Drop the program, which frees its memory."""
        self._program = None

    def _tensor(self, array: Any, *, is_bf16: bool) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.view(torch.bfloat16) if is_bf16 else tensor).to(self._target)

    def _named(self, result: Any) -> Arrays:
        if isinstance(result, dict):
            return {name: _array(value) for name, value in result.items()}
        values = result if isinstance(result, tuple | list) else (result,)
        if len(values) != len(self._outputs):
            raise ValueError(f"the program gives {len(values)} outputs, but model.yaml declares {len(self._outputs)}")
        return {name: _array(value) for name, value in zip(self._outputs, values, strict=True)}


def _array(tensor: torch.Tensor) -> Any:
    here = tensor.detach().cpu()
    return here.view(torch.uint16).numpy() if here.dtype == torch.bfloat16 else np.asarray(here.numpy())


def _read_program(path: Path, target: torch.device) -> Any:
    jit: Any = torch.jit  # untyped where torch brings types
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    parts = {part for name in names for part in name.split("/")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its models are served as long as torch reads them
        if "archive_format" in parts:
            return torch.export.load(path).module().to(target)
        if "constants.pkl" in parts:
            return jit.load(path, map_location=target).eval()
    raise ModelLoadError(
        f"{path} is neither a TorchScript archive (torch.jit.save) nor a torch.export program (torch.export.save); "
        "export the model as one of them"
    )
