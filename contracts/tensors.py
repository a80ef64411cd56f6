"""Tensors as the Open Inference Protocol has them: a name, a datatype, a shape and the raw little-endian bytes.

The bytes are never copied on the way in: `Tensor.data` may be a view into the received record, and `to_numpy` a view
into that. BYTES tensors (strings, encoded images) hold each element as a 4-byte little-endian length followed by its
bytes, as in the protocol's binary form. BF16 has no numpy type; its arrays are the raw 16-bit patterns (uint16).

A tensor that is too large to travel in a record has no data but a reference: its bytes lie in a store that both sides
were told of, under the name that their digest gives them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from contracts.errors import InvalidRequest

type_sizes: dict[str, int] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
}
BYTES = "BYTES"
DATATYPES = (*type_sizes, BYTES)
MAX_DIMENSIONS = 8

_numpy_types: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
_datatypes: dict[np.dtype[Any], str] = {dtype: name for name, dtype in _numpy_types.items() if name != "BF16"}
_length = struct.Struct("<I")


class Ref(msgspec.Struct, frozen=True, gc=False):
    """Bytes that are kept elsewhere, by what they are: sha256 in lower-case hexadecimal, and how many there are.

    It names content and no place: where to look is each side's own setting, so no reference leads anywhere else.
    """

    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Tensor(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A named tensor. `shape` includes the batch dimension first; `data` is its raw bytes, or `ref` says which."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview = memoryview(b"")
    ref: Ref | None = None

    @property
    def size(self) -> int:
        """How many bytes it has, wherever they are."""
        return len(self.data) if self.ref is None else self.ref.size

    @property
    def rows(self) -> int:
        """The size of the first dimension."""
        return self.shape[0] if self.shape else 0

    def to_numpy(self) -> npt.NDArray[Any]:
        """The tensor as an array (shape `self.shape`); a read-only view of the data unless the datatype is BYTES.

        Raises InvalidRequest when the shape, the datatype and the number of bytes contradict each other, and when the
        bytes are elsewhere.
        """
        fault = check_tensor(self)
        if fault is None and self.ref is not None:
            fault = f"tensor {self.name!r} is a reference to {self.ref.size} bytes, which were not read"
        if fault:
            raise InvalidRequest(fault)
        if self.datatype == BYTES:
            elements = np.empty(math.prod(self.shape), dtype=object)
            elements[:] = unpack_elements(self.data)
            return elements.reshape(self.shape)
        return np.frombuffer(self.data, dtype=_numpy_types[self.datatype]).reshape(self.shape)

    @classmethod
    def from_numpy(cls, name: str, array: npt.ArrayLike) -> Tensor:
        """A tensor with the content of `array` (numbers, booleans, str or bytes); copies only what is not contiguous.

        Raises InvalidRequest for element types that have no datatype in the protocol (complex numbers, dates, …).
        """
        values = np.asarray(array)
        if values.dtype.kind in "OUS":
            return cls(name, BYTES, values.shape, memoryview(pack_elements(values.ravel().tolist())))
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        datatype = _datatypes.get(little.dtype)
        if datatype is None:
            msg = f"tensor {name!r}: arrays of {values.dtype} cannot be sent; convert to one of {', '.join(DATATYPES)}"
            raise InvalidRequest(msg)
        # A view of an empty array cannot be cast to bytes.
        data = np.ascontiguousarray(little).data.cast("B") if little.size else memoryview(b"")
        return cls(name, datatype, values.shape, data)


def numpy_type(datatype: str) -> np.dtype[Any]:
    """The numpy type that holds one element; object for BYTES. Raises KeyError for an unknown datatype."""
    return np.dtype(object) if datatype == BYTES else _numpy_types[datatype]


def check_tensor(tensor: Tensor) -> str | None:
    """Why a tensor contradicts itself (unknown datatype, impossible shape, wrong number of bytes), or None."""
    shape = tensor.shape
    if len(shape) > MAX_DIMENSIONS or (shape and min(shape) < 0) or (tensor.ref is not None and tensor.data):
        return _contradiction(tensor)
    count = math.prod(shape)  # Python integers: a shape that lies cannot overflow
    if tensor.datatype == BYTES:
        return _check_elements(tensor, count)
    size = type_sizes.get(tensor.datatype)
    if size is None:
        return f"tensor {tensor.name!r} has unknown datatype {tensor.datatype[:32]!r}; known: {', '.join(DATATYPES)}"
    if count * size != tensor.size:
        return (
            f"tensor {tensor.name!r} of {tensor.datatype} {list(shape)} needs {count * size} bytes "
            f"but carries {tensor.size}"
        )
    return None


def _contradiction(tensor: Tensor) -> str:
    if tensor.ref is not None and tensor.data:
        return f"tensor {tensor.name!r} has both data and a reference"
    if len(tensor.shape) > MAX_DIMENSIONS:
        return f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions, more than {MAX_DIMENSIONS}"
    return f"tensor {tensor.name!r} has a negative dimension in shape {list(tensor.shape)}"


def _check_elements(tensor: Tensor, count: int) -> str | None:
    if count * _length.size > tensor.size:  # before walking: a lying shape must not cost time
        return f"tensor {tensor.name!r} of BYTES {list(tensor.shape)} is shorter than {count} element lengths"
    if tensor.ref is not None:  # the rest shows when the bytes are here
        return None
    found, position, end = 0, 0, len(tensor.data)
    while position + _length.size <= end:
        position += _length.size + _length.unpack_from(tensor.data, position)[0]
        found += 1
    if position != end or found != count:
        return f"tensor {tensor.name!r} of BYTES {list(tensor.shape)} does not hold exactly {count} whole elements"
    return None


def pack_elements(elements: Iterable[str | bytes]) -> bytes:
    """The data of a BYTES tensor: each element as its 4-byte little-endian length and its bytes (str as UTF-8)."""
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode() if isinstance(element, str) else bytes(element)
        parts += (_length.pack(len(raw)), raw)
    return b"".join(parts)


def unpack_elements(data: memoryview | bytes) -> list[bytes]:
    """The elements of a BYTES tensor whose data was checked."""
    elements: list[bytes] = []
    position, end, view = 0, len(data), memoryview(data)
    while position < end:
        (size,) = _length.unpack_from(view, position)
        position += _length.size
        elements.append(bytes(view[position : position + size]))
        position += size
    return elements


def element_offsets(data: memoryview | bytes, counts: Sequence[int]) -> list[int]:
    """Byte positions at which consecutive groups of `counts[i]` BYTES elements start, and the end of the last one."""
    offsets, position = [0], 0
    for count in counts:
        for _ in range(count):
            position += _length.size + _length.unpack_from(data, position)[0]
        offsets.append(position)
    return offsets
