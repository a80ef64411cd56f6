"""Rows of a map: tensors cut into rows, and rows put together again, without computing anything.

Along axis 0, each row keeps its first dimension, of size 1, so that the steps of the body see what a request with one
row would bring; put together, rows come one behind the other. Along axis 1, where a model answers several things for
each of its rows, row i is `tensor[:, i]`, and put together, rows are stacked along a new axis 1: the steps behind the
map see as many rows as those before it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from contracts.errors import InvalidRequest
from contracts.plans import Declared
from contracts.tensors import BYTES, Tensor, check_tensor, element_offsets, pack_elements, type_sizes


def count_rows(tensors: Sequence[Tensor], axis: int, max_rows: int) -> int:
    """How many rows the tensors of a map have. Raises InvalidRequest when they differ or are too many."""
    for tensor in tensors:
        fault = check_tensor(tensor)
        if fault or len(tensor.shape) <= axis:
            raise InvalidRequest(fault or f"tensor {tensor.name!r} of shape {list(tensor.shape)} has no axis {axis}")
    rows = {tensor.shape[axis] for tensor in tensors}
    if len(rows) > 1:
        sizes = ", ".join(f"{tensor.name} {tensor.shape[axis]}" for tensor in tensors)
        raise InvalidRequest(f"the tensors of a map must have equally many rows; these have {sizes}")
    (count,) = rows
    if count > max_rows:
        raise InvalidRequest(f"{count} rows are more than max_rows {max_rows}")
    return count


def split(tensor: Tensor, axis: int) -> Iterator[Tensor]:
    """The rows of a tensor; along axis 0, views of it."""
    if axis == 1:
        array = tensor.to_numpy()
        for column in range(tensor.shape[1]):
            yield _tensor(tensor.name, tensor.datatype, array[:, column])
        return
    shape = (1, *tensor.shape[1:])
    elements = math.prod(tensor.shape[1:])
    if tensor.datatype == BYTES:
        offsets = element_offsets(tensor.data, [elements] * tensor.rows)
    else:
        size = elements * type_sizes[tensor.datatype]
        offsets = [row * size for row in range(tensor.rows + 1)]
    for begin, end in itertools.pairwise(offsets):
        yield Tensor(tensor.name, tensor.datatype, shape, tensor.data[begin:end])


def join(name: str, rows: Sequence[Tensor], axis: int) -> Tensor:
    """Rows put together. Raises InvalidRequest when they do not fit together."""
    first = rows[0]
    for row in rows:
        fits = row.shape[1:] == first.shape[1:] if axis == 0 else row.shape == first.shape
        if not row.shape or row.datatype != first.datatype or not fits:
            here, there = (f"{tensor.datatype} {list(tensor.shape)}" for tensor in (first, row))
            raise InvalidRequest(f"rows of {name!r} do not fit together: {here} and {there}")
    if axis == 1:
        return _tensor(name, first.datatype, np.stack([row.to_numpy() for row in rows], axis=1))
    shape = (sum(row.rows for row in rows), *first.shape[1:])
    return Tensor(name, first.datatype, shape, memoryview(b"".join(row.data for row in rows)))


def empty(declared: Declared, axis: int) -> Tensor:
    """What stands for a tensor of no rows; other sizes that nobody declared are 0."""
    sizes = [max(0, size) for size in declared.shape]
    shape = (0, *sizes[1:]) if axis == 0 else (1, 0, *sizes[2:])
    return Tensor(declared.name, declared.datatype, shape, memoryview(b""))


def row_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of a row of a tensor declared like this."""
    return shape if axis == 0 else (shape[0], *shape[2:])


def joined_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of rows declared like this, put together."""
    return shape if axis == 0 else (shape[0], -1, *shape[1:])


def _tensor(name: str, datatype: str, array: npt.NDArray[Any]) -> Tensor:
    if datatype == BYTES:
        return Tensor(name, BYTES, array.shape, memoryview(pack_elements(array.ravel().tolist())))
    data = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
    return Tensor(name, datatype, array.shape, data)
