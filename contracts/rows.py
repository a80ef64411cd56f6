"""Rows of a map: tensors cut into rows, and rows put together again, without computing anything.

A row keeps its first dimension, of size 1, so that the steps of the body see what a request with one row would bring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from contracts.errors import InvalidRequest
from contracts.plans import Declared
from contracts.tensors import BYTES, Tensor, check_tensor, element_offsets, type_sizes


def count_rows(tensors: Sequence[Tensor], max_rows: int) -> int:
    """How many rows the tensors of a map have. Raises InvalidRequest when they differ or are too many."""
    for tensor in tensors:
        fault = check_tensor(tensor)
        if fault or not tensor.shape:
            raise InvalidRequest(fault or f"tensor {tensor.name!r} has no rows to go over")
    rows = {tensor.rows for tensor in tensors}
    if len(rows) > 1:
        sizes = ", ".join(f"{tensor.name} {tensor.rows}" for tensor in tensors)
        raise InvalidRequest(f"the tensors of a map must have equally many rows; these have {sizes}")
    (count,) = rows
    if count > max_rows:
        raise InvalidRequest(f"{count} rows are more than max_rows {max_rows}")
    return count


def split(tensor: Tensor) -> Iterator[Tensor]:
    """The rows of a tensor, as views of it."""
    shape = (1, *tensor.shape[1:])
    elements = math.prod(tensor.shape[1:])
    if tensor.datatype == BYTES:
        offsets = element_offsets(tensor.data, [elements] * tensor.rows)
    else:
        size = elements * type_sizes[tensor.datatype]
        offsets = [row * size for row in range(tensor.rows + 1)]
    for begin, end in zip(offsets, offsets[1:], strict=False):
        yield Tensor(tensor.name, tensor.datatype, shape, tensor.data[begin:end])


def join(name: str, rows: Sequence[Tensor]) -> Tensor:
    """Tensors one behind the other along the first dimension. Raises InvalidRequest when they do not fit together."""
    first = rows[0]
    for row in rows:
        if not row.shape or row.datatype != first.datatype or row.shape[1:] != first.shape[1:]:
            here, there = (f"{tensor.datatype} {list(tensor.shape)}" for tensor in (first, row))
            raise InvalidRequest(f"rows of {name!r} do not fit together: {here} and {there}")
    shape = (sum(row.rows for row in rows), *first.shape[1:])
    return Tensor(name, first.datatype, shape, memoryview(b"".join(row.data for row in rows)))


def empty(declared: Declared) -> Tensor:
    """What stands for a tensor of no rows; sizes that nobody declared are 0."""
    shape = (0, *(max(0, size) for size in declared.shape[1:]))
    return Tensor(declared.name, declared.datatype, shape, memoryview(b""))
