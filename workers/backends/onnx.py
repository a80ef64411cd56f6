"""ONNX models in ONNX Runtime: the only door to onnxruntime.

The graph's own signature is compared with model.yaml when the model is loaded: a wrong name, type or size is found
before the first request, not by it. `onnx_providers` says what runs the graph, `onnx_binding` how a GPU's results come
back. On a CPU outputs are fetched with `run` and copied into the slot: binding them gained nothing there, and cost up
to 7 µs a batch.

The CUDA and TensorRT providers were written by their documentation, and have not run on a device yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.specs import TensorSpec
from contracts.tensors import BYTES, numpy_type
from workers.backends.base import CPU, CUDA, Arrays, ModelContext
from workers.backends.device_faults import DeviceLost, is_lost, is_out_of_memory
from workers.backends.onnx_binding import BoundSession
from workers.backends.onnx_providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Refused,
    choose,
    options,
    verify,
)

log = logging.getLogger(__name__)

_datatypes: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}
_devices: Final = {CPU_PROVIDER: CPU, CUDA_PROVIDER: CUDA, TENSORRT_PROVIDER: f"{CUDA} (TensorRT)"}


class OnnxBackend:
    """Runs a graph on the CPU, or on the lease's GPU. `binds` is for measuring; by default it binds on a GPU."""

    def __init__(self, *, binds: bool | None = None) -> None:
        self.device = CPU
        self._binds = binds
        self._session: Any = None
        self._bound: BoundSession | None = None
        self._outputs: list[str] = []
        self._texts: tuple[str, ...] = ()

    def load(self, context: ModelContext) -> None:
        """Build the session and compare its signature with the spec's."""
        spec = context.spec
        session = _session(context)
        faults = signature_faults(spec.inputs, spec.outputs, session.get_inputs(), session.get_outputs())
        if faults:
            lines = "; ".join(faults)
            raise ModelLoadError(f"{spec.key}: model.yaml and {spec.artefact_name} contradict each other: {lines}")
        self.device = _devices[session.get_providers()[0]]
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._texts = tuple(tensor.name for tensor in spec.inputs if tensor.datatype == BYTES)
        self._session = session
        has_texts = any(tensor.datatype == BYTES for tensor in (*spec.inputs, *spec.outputs))  # no memory to bind to
        if not has_texts and (self.device != CPU if self._binds is None else self._binds):
            self._bound = BoundSession(session, {tensor.name: numpy_type(tensor.datatype) for tensor in spec.outputs})

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        """Run the graph; `parameters` mean nothing to it."""
        for name in self._texts:
            inputs[name] = _as_text(name, inputs[name])
        try:
            if self._bound is not None:
                return self._bound.run(inputs)
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except Exception as exc:
            if is_lost(exc):
                raise DeviceLost(str(exc)) from exc
            if is_out_of_memory(exc):
                raise MemoryError(str(exc)) from exc
            raise

    def close(self) -> None:
        """Drop the session, which frees its memory."""
        self._session = self._bound = None


def _session(context: ModelContext) -> Any:
    """Raises ModelLoadError."""
    spec, path, cache = context.spec, context.artefact, _cache(context)
    try:
        choice = choose(spec.onnx.provider, onnxruntime.get_available_providers(), on_gpu=context.device == CUDA)
        providers = [(name, options(name, spec, cache)) for name in choice.providers]
        _prepare(choice.providers, cache)
        session = onnxruntime.InferenceSession(
            str(path), _session_options(context), providers=providers, enable_fallback=0
        )
        warnings = (choice.warning, verify(choice.providers, session.get_providers()))
    except Refused as exc:
        raise ModelLoadError(f"{spec.key}: {exc}") from exc
    except Exception as exc:
        raise ModelLoadError(
            f"{spec.key}: ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {exc}"
        ) from exc
    for warning in filter(None, warnings):
        log.warning("%s: %s", spec.key, warning)
    session.disable_fallback()  # a GPU that fails shall fail the batch, not turn into a CPU unseen
    return session


def _cache(context: ModelContext) -> Path | None:
    """A folder that no other version of the library, and no other precision, writes to."""
    if context.cache is None:
        return None
    return context.cache / f"onnxruntime-{onnxruntime.__version__}{'-fp16' if context.spec.onnx.fp16 else ''}"


def _prepare(providers: Sequence[str], cache: Path | None) -> None:
    if CUDA_PROVIDER in providers and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the wheels that pip installs them in
    if TENSORRT_PROVIDER in providers and cache is not None:
        cache.mkdir(parents=True, exist_ok=True)


def _session_options(context: ModelContext) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = context.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while they wait would take the cores of the ingest process next door.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings are about graphs that their owners cannot change here
    return options


def _as_text(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """BYTES as ONNX Runtime wants strings: it would turn bytes objects into their Python notation."""
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [element.decode() for element in array.ravel()]
    except UnicodeDecodeError:
        # Not chained: the decoder's own exception carries the caller's bytes.
        raise ValueError(f"{name!r} holds bytes that are not UTF-8, and ONNX strings are text") from None
    return texts.reshape(array.shape)


def signature_faults(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    graph_inputs: Iterable[Any],
    graph_outputs: Iterable[Any],
) -> list[str]:
    """Where a spec contradicts a graph. Graph tensors have `name`, `type` and `shape` (int, symbol or None each)."""
    takes, gives = ({tensor.name: tensor for tensor in side} for side in (graph_inputs, graph_outputs))
    faults = [f"the graph takes {name!r}: declare it under inputs:" for name in takes.keys() - {t.name for t in inputs}]
    for tensor in inputs:
        faults += _tensor_faults(tensor, takes, "input", "takes")
    for tensor in outputs:
        faults += _tensor_faults(tensor, gives, "output", "gives")
    return faults


def _tensor_faults(declared: TensorSpec, side: dict[str, Any], word: str, verb: str) -> list[str]:
    real, name = side.get(declared.name), f"{word} {declared.name!r}"
    if real is None:
        return [f"there is no {name}: the graph {verb} {', '.join(map(repr, side))}"]
    datatype = _datatypes.get(real.type)
    if datatype is None:
        return [f"{name} is of {real.type}, which cannot be sent: cast it inside the graph"]
    if datatype != declared.datatype:
        return [f"{name} is declared {declared.datatype}, but the graph {verb} {datatype}"]
    return _shape_faults(declared, real, word, verb)


def _shape_faults(declared: TensorSpec, real: Any, word: str, verb: str) -> list[str]:
    name = f"{word} {declared.name!r}"
    shape = [size if isinstance(size, int) else -1 for size in real.shape]
    if not shape:  # a rank that the exporter did not know
        return []
    if len(shape) != len(declared.shape):
        return [f"{name} is declared {list(declared.shape)}, but the graph {verb} {shape}"]
    if shape[0] != -1:
        return [f"{name} has a fixed batch of {shape[0]}: export the graph with a dynamic first dimension"]
    # What the graph leaves open the spec may fix; what it fixes an output's spec may leave open, an input's may not.
    loose = word == "output"
    pairs = zip(declared.shape, shape, strict=True)
    if any(want != got != -1 and not (loose and want == -1) for want, got in pairs):
        return [f"{name} is declared {list(declared.shape)}, but the graph {verb} {shape}"]
    return []
