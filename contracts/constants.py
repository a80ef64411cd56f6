"""Constants of pipelines: YAML's numbers, strings and lists as tensors, refused where they would silently change."""

from __future__ import annotations

from typing import Any

import numpy as np

from contracts.errors import HeadraceError
from contracts.plans import Constant
from contracts.tensors import BYTES, MAX_DIMENSIONS, Tensor, numpy_type


def constant(value: Any, datatype: str) -> Constant:
    """The tensor that a constant stands for; a single value is one row. Raises ValueError when it is none."""
    try:
        array = _bytes(value) if datatype == BYTES else _numbers(value, datatype)
        tensor = Tensor.from_numpy("const", array if array.ndim else array.reshape(1))
    except (HeadraceError, OverflowError, TypeError, ValueError) as exc:
        msg = f"the constant is no {datatype} tensor: {exc}"
        raise ValueError(msg) from exc
    return Constant(datatype, tuple(tensor.shape), bytes(tensor.data))


def _numbers(value: Any, datatype: str) -> np.ndarray[Any, Any]:
    found = np.asarray(value)
    if found.dtype == object or found.dtype.kind not in "biuf" or found.ndim > MAX_DIMENSIONS:
        msg = "write numbers or booleans, in lists of equal length"
        raise ValueError(msg)
    wanted = numpy_type(datatype)
    with np.errstate(all="ignore"):
        array = found.astype(wanted)
    is_exact = np.array_equal(array.astype(found.dtype), found, equal_nan=found.dtype.kind == "f")
    if wanted.kind in "biu" and (found.dtype.kind == "f" or not is_exact) and not (found.size == 0 or is_exact):
        msg = f"{value!r} does not fit"
        raise ValueError(msg)
    return array


def _bytes(value: Any) -> np.ndarray[Any, Any]:
    found = np.asarray(value, dtype=object)
    if not all(isinstance(element, (str, bytes)) for element in found.ravel()):
        msg = "write strings, in lists of equal length"
        raise ValueError(msg)
    return found
