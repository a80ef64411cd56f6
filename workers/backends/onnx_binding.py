"""Runs of an ONNX session whose inputs and outputs are bound to memory of ours.

Inputs are bound where they stand, in the slot. An output is written straight into a buffer that is used again and again
when its shape is known before the run: its dimensions are numbers, or symbols that some input fixes. ONNX Runtime
allocates the others.

Three traps, each with a test. A binding outlives the run: an input that is missing would silently be the last batch's,
and an output that ONNX Runtime allocated once counts as preallocated in the next run, so both are bound anew each time.
And a graph may claim a symbol for an output that is something else; the run then fails, and from then on that model's
outputs are left to ONNX Runtime.

On a CPU this gains nothing (`workers.backends.onnx` has the figures). For CUDA it spares the allocations and a copy
between host buffers; on a device it has not been measured.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workers.backends.base import Arrays

log = logging.getLogger(__name__)

Dimensions = Sequence[int | str | None]
_shape_complaint: Final = "pre-allocated"  # of a bound output that the run would give another shape


def symbols_of(shapes: Mapping[str, Dimensions], inputs: Arrays) -> dict[str, int]:
    """What the symbols of a graph's input shapes mean in a batch."""
    return {
        symbol: size
        for name, shape in shapes.items()
        for symbol, size in zip(shape, inputs[name].shape, strict=False)
        if isinstance(symbol, str) and symbol
    }


def resolved(shape: Dimensions, symbols: Mapping[str, int]) -> tuple[int, ...] | None:
    """A shape in numbers; None when a dimension is not known before the run."""
    sizes = [size if isinstance(size, int) else symbols.get(size or "", -1) for size in shape]
    return tuple(sizes) if sizes and min(sizes) >= 0 else None


class BoundSession:
    """A session, called with bindings. `outputs` are the names and types of what is fetched."""

    def __init__(self, session: Any, outputs: Mapping[str, np.dtype[Any]]) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs: dict[str, Dimensions] = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        shapes = {tensor.name: tensor.shape for tensor in session.get_outputs()}
        self._outputs = {name: (dtype, shapes[name]) for name, dtype in outputs.items()}
        self._may_place = True
        self._buffers: dict[str, npt.NDArray[Any]] = {}

    def run(self, inputs: Arrays) -> Arrays:
        """Run a batch; the arrays that come back are overwritten by the next."""
        for name in self._inputs:
            self._binding.bind_cpu_input(name, np.ascontiguousarray(inputs[name]))
        try:
            return self._run(symbols_of(self._inputs, inputs) if self._may_place else {})
        except RuntimeError as exc:
            if not self._may_place or _shape_complaint not in str(exc):
                raise
            log.warning("the graph's output shapes are not what it claims; its outputs are not bound any more")
            self._may_place = False
            return self._run({})

    def _run(self, symbols: Mapping[str, int]) -> Arrays:
        placed: Arrays = {}
        for name, (dtype, dimensions) in self._outputs.items():
            shape = resolved(dimensions, symbols) if self._may_place else None
            if shape is None:
                self._binding.bind_output(name)
            else:
                placed[name] = target = self._buffer(name, dtype, shape)
                self._binding.bind_output(name, "cpu", 0, dtype.type, shape, target.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        if len(placed) == len(self._outputs):
            return placed
        found = zip(self._outputs, self._binding.get_outputs(), strict=True)
        return {name: placed[name] if name in placed else value.numpy() for name, value in found}

    def _buffer(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Memory for an output: one buffer of the largest size so far."""
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(max(size, 1), dtype)
        return buffer[:size].reshape(shape)
