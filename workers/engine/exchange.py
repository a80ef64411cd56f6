"""How a batch's tensors are read from a slot and written back to it.

Inputs become arrays that look into the slot: nothing is copied, except that BYTES are unpacked into objects. Outputs
are held against the spec before anything is written, so that a slot never carries a result that contradicts what the
model promised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contracts.specs import TensorSpec
from contracts.tensors import BYTES, Tensor, numpy_type
from workers.backends.base import Arrays
from workers.link import Region
from workers.slots import ALIGNMENT, align

_text_kinds: Final = "OSU"  # numpy's letters for object, bytes and str arrays


class OutputMismatch(ValueError):
    """A model's outputs contradict its spec, or do not fit into the slot."""


def read_inputs(view: memoryview, regions: Iterable[Region]) -> Arrays:
    """The arrays that `regions` describe. Raises TypeError, ValueError or InvalidRequest for one that is not there."""
    arrays: Arrays = {}
    for region in regions:
        if region.datatype == BYTES:
            data = view[region.offset : region.offset + region.size]
            arrays[region.name] = Tensor(region.name, BYTES, region.shape, data).to_numpy()
        else:
            arrays[region.name] = np.ndarray(region.shape, numpy_type(region.datatype), view, region.offset)
    return arrays


class OutputRegions:
    """Checks and places the outputs of one model; `capacity` is the size of a slot's output region."""

    def __init__(self, tensors: Sequence[TensorSpec], capacity: int) -> None:
        self._capacity = capacity
        self._tensors = [
            (tensor.name, tensor.datatype, numpy_type(tensor.datatype), tensor.shape[1:]) for tensor in tensors
        ]

    def place(self, outputs: object, rows: int) -> tuple[tuple[Region, ...], list[npt.NDArray[Any] | memoryview]]:
        """Where each output goes in a slot, and what goes there. Raises OutputMismatch."""
        if not isinstance(outputs, dict):
            raise OutputMismatch(f"the model returned {_article(outputs)}, not a dict of arrays by output name")
        regions: list[Region] = []
        sources: list[npt.NDArray[Any] | memoryview] = []
        end = 0
        for name, datatype, dtype, tail in self._tensors:
            array: Any = outputs.get(name)
            fault = _fault(array, datatype, dtype, rows, tail)
            if fault:
                raise OutputMismatch(f"output {name!r} {fault}")
            source = _packed(name, array) if datatype == BYTES else array
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            end = offset + source.nbytes
            regions.append(Region(name, datatype, array.shape, offset, source.nbytes))
            sources.append(source)
        if len(outputs) > len(regions):
            surplus = sorted(map(str, outputs.keys() - {region.name for region in regions}))
            raise OutputMismatch(
                f"the model returned {', '.join(map(repr, surplus))}, which model.yaml does not declare"
            )
        if end > self._capacity:
            raise OutputMismatch(
                f"the outputs of {rows} rows take {end} bytes, but a slot has room for {self._capacity}: "
                "raise slot_mib or lower max_batch_size in model.yaml"
            )
        return tuple(regions), sources

    def write(self, outputs: object, rows: int, view: memoryview) -> tuple[Region, ...]:
        """Check the outputs and copy them into a slot's output region; where they stand. Raises OutputMismatch."""
        regions, sources = self.place(outputs, rows)
        for region, source in zip(regions, sources, strict=True):
            if isinstance(source, memoryview):
                view[region.offset : region.offset + region.size] = source
            else:
                np.ndarray(region.shape, source.dtype, view, region.offset)[...] = source
        return regions

    def room(self, outputs: object, rows: int, view: memoryview) -> tuple[tuple[Region, ...], Arrays]:
        """Check what outputs will be; where in a slot's output region they may be written. Raises OutputMismatch."""
        regions, _ = self.place(outputs, rows)
        arrays = {
            region.name: np.ndarray(region.shape, numpy_type(region.datatype), view, region.offset)
            for region in regions
        }
        return regions, arrays


def _fault(array: object, datatype: str, dtype: np.dtype[Any], rows: int, tail: tuple[int, ...]) -> str | None:
    if array is None:
        return "is missing"
    if not isinstance(array, np.ndarray):
        return f"is {_article(array)}, not a numpy array"
    if array.dtype.kind not in _text_kinds if datatype == BYTES else array.dtype != dtype:
        return f"is an array of {array.dtype}, but model.yaml declares {datatype}"
    shape = array.shape
    if shape[:1] != (rows,):
        return f"has the shape {list(shape)} for a batch of {rows} rows"
    if shape[1:] != tail and (
        len(shape) != 1 + len(tail) or any(want not in (-1, got) for want, got in zip(tail, shape[1:], strict=True))
    ):
        return f"has the shape {list(shape)}, but model.yaml declares {[-1, *tail]}"
    return None


def _packed(name: str, array: npt.NDArray[Any]) -> memoryview:
    strangers = {type(element) for element in array.ravel().tolist()} - {str, bytes}
    if strangers:
        raise OutputMismatch(f"output {name!r} holds a {strangers.pop().__name__} among its texts")
    return Tensor.from_numpy(name, array).data


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def made_up_inputs(tensors: Sequence[TensorSpec], rows: int) -> Arrays | None:
    """Inputs to warm a model up with: zeros, open dimensions 1. None when there are BYTES, whose meaning is unknown."""
    if any(tensor.datatype == BYTES for tensor in tensors):
        return None
    return {
        tensor.name: np.zeros((rows, *(abs(size) for size in tensor.shape[1:])), numpy_type(tensor.datatype))
        for tensor in tensors
    }


def warm_up_sizes(tensors: Sequence[TensorSpec], max_batch_size: int, capacity: int) -> list[int]:
    """Batch sizes to warm up with, largest first: what max_batch_size and the slot allow, half of it, one row."""
    row = sum(
        align(math.prod(abs(size) for size in tensor.shape[1:]) * numpy_type(tensor.datatype).itemsize)
        for tensor in tensors
    )
    most = max(1, min(max_batch_size, capacity // max(row, 1)))
    return sorted({most, (most + 1) // 2, 1}, reverse=True)
