"""How requests stand in a slot: rows behind rows, filled up where the model's spec asks for it, and cut apart again.

    padding.batch            rows of the pad value up to the next bucket; their results are never looked at
    batch_invariant          the same, where the largest batch is the only bucket
    padding.length_buckets   open dimensions are filled up to a bucket, so that rows of different lengths share a batch
    padding.mask             an input that is filled here: 1 where a row has an element, 0 where it was filled up
    padding.offsets          an input that is filled here: the row at which each request begins, and the end of the last

Padding then cutting is the identity: a request gets the rows, and along an output's open dimensions the length, that it
sent. Most models pad nothing; for them a batch is one copy per tensor, and an answer a view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from contracts.specs import ModelSpec
from contracts.tensors import BYTES, Tensor, element_offsets, numpy_type
from workers.ingest.buckets import Buckets, batch_sizes, padded_tail
from workers.ingest.delivery import Delivery
from workers.link import Region
from workers.slots import align

_BIG_TENSOR_BYTES = 4096  # above this one copy per tensor into the slot beats joining them first
_EMPTY_ELEMENT = b"\0\0\0\0"  # a BYTES element of no bytes


class Laid(msgspec.Struct, frozen=True, gc=False):
    """A batch in its slot: the tensors, and the rows that the engine computes."""

    regions: tuple[Region, ...]
    rows: int


class Layout:
    """Lays requests of one model into slots, and cuts outputs into their parts."""

    def __init__(self, spec: ModelSpec) -> None:
        self._padding = spec.batching.padding
        self._names = [tensor.name for tensor in spec.request_inputs]
        self._tails = [tensor.shape[1:] for tensor in spec.request_inputs]
        self._filled = {tensor.name: tensor.datatype for tensor in spec.inputs if tensor.name not in self._names}
        self._open_outputs = {tensor.name: tensor.shape for tensor in spec.outputs if -1 in tensor.shape[1:]}
        fills_up = self._padding.batch or spec.batching.batch_invariant
        self._buckets = Buckets(batch_sizes(spec.batching)) if fills_up else None
        self._lengths = self._padding.length_buckets
        # The dimension that says how long a row is: the first open one of all inputs.
        self._measure = next(
            ((at, 1 + tail.index(-1)) for at, tail in enumerate(self._tails) if -1 in tail and self._lengths), None
        )

    # --- into the slot ------------------------------------------------------------------------------------------------

    def fill(self, slot: memoryview, deliveries: Sequence[Delivery]) -> Laid:
        """Lay the rows of all deliveries into a slot. Raises ValueError when they do not fit."""
        rows = 0
        for delivery in deliveries:
            rows += delivery.rows
        total = rows if self._buckets is None else max(rows, self._buckets.up(rows))
        regions: list[Region] = []
        end = 0
        for index, tensor in enumerate(deliveries[0].inputs):
            offset, tail = align(end) if end else 0, tensor.shape[1:]
            if self._measure is not None:
                tail = padded_tail(self._tails[index], tail, self._lengths)
            tensors = [delivery.inputs[index] for delivery in deliveries] if len(deliveries) > 1 else (tensor,)
            end = self._lay(slot, offset, tensors, tail, total - rows)
            regions.append(Region(tensor.name, tensor.datatype, (total, *tail), offset, end - offset))
        if self._filled:
            self._add_filled(slot, align(end), regions, deliveries, total)
        return Laid(tuple(regions), total)

    def _lay(
        self, slot: memoryview, offset: int, tensors: Sequence[Tensor], tail: tuple[int, ...], missing: int
    ) -> int:
        """Lay tensors, and so many rows that are missing, one below the other; returns the end."""
        if self._measure is not None and any(tensor.shape[1:] != tail for tensor in tensors):
            rows = missing + sum(tensor.shape[0] for tensor in tensors)
            target = _array(slot, offset, tensors[0].datatype, (rows, *tail))
            target[...] = _pad(tensors[0].datatype, self._padding.value)
            start = 0
            for tensor in tensors:
                inner = tuple(slice(size) for size in tensor.shape[1:])
                target[(slice(start, start + tensor.shape[0]), *inner)] = tensor.to_numpy()
                start += tensor.shape[0]
            return offset + target.nbytes
        end = _copy(slot, offset, tensors)
        return self._fill_up(slot, end, tensors[0].datatype, (missing, *tail)) if missing else end

    def _fill_up(self, slot: memoryview, offset: int, datatype: str, shape: tuple[int, ...]) -> int:
        if datatype == BYTES:
            padding = _EMPTY_ELEMENT * math.prod(shape)
        else:
            padding = np.full(shape, _pad(datatype, self._padding.value)).astype(numpy_type(datatype)).tobytes()
        end = offset + len(padding)
        slot[offset:end] = padding
        return end

    def _add_filled(
        self, slot: memoryview, offset: int, regions: list[Region], deliveries: Sequence[Delivery], rows: int
    ) -> None:
        starts = np.cumsum([0, *(delivery.rows for delivery in deliveries)])
        for name, datatype in self._filled.items():
            if name == self._padding.offsets:
                target = _array(slot, offset, datatype, (len(starts),))
                target[:] = starts
            else:
                assert self._measure is not None  # noqa: S101 - the spec has seen to it
                at, dimension = self._measure
                target = _array(slot, offset, datatype, (rows, regions[at].shape[dimension]))
                target[...] = 0
                for delivery, start in zip(deliveries, starts, strict=False):
                    target[start : start + delivery.rows, : delivery.inputs[at].shape[dimension]] = 1
            regions.append(Region(name, datatype, target.shape, offset, target.nbytes))
            offset = align(offset + target.nbytes)

    # --- out of the slot ----------------------------------------------------------------------------------------------

    def results(
        self, regions: Sequence[Region], slot: memoryview, deliveries: Sequence[Delivery]
    ) -> Iterator[tuple[Tensor, ...]]:
        """The outputs of a batch, cut into the parts of its requests."""
        if len(deliveries) == 1 and self._measure is None and self._buckets is None:  # all of it is the one request's
            yield tuple(map(whole, regions, repeat(slot)))
            return
        outputs = self._outputs(regions, slot, deliveries)
        for index, delivery in enumerate(deliveries):
            yield tuple([output.part(index, delivery.rows) for output in outputs])

    def _outputs(self, regions: Sequence[Region], slot: memoryview, deliveries: Sequence[Delivery]) -> list[Output]:
        counts = [delivery.rows for delivery in deliveries]
        found = [Output(region, slot, counts) for region in regions]
        if self._measure is not None:
            at, dimension = self._measure
            lengths = [delivery.inputs[at].shape[dimension] for delivery in deliveries]
            (padded,) = padded_tail((-1,), (max(lengths),), self._lengths)
            for output in found:
                shape = self._open_outputs.get(output.name)
                if shape is not None and any(length != padded for length in lengths):
                    output.cut_to(lengths, padded, shape)
        return found


def whole(region: Region, slot: memoryview) -> Tensor:
    """A tensor in a slot, as a view."""
    return Tensor(region.name, region.datatype, region.shape, slot[region.offset : region.offset + region.size])


class Output:
    """One output tensor of a batch, cut into the requests' parts as views."""

    __slots__ = ("_dimensions", "_lengths", "_offsets", "_region", "_view", "name")

    def __init__(self, region: Region, slot: memoryview, counts: Sequence[int]) -> None:
        self.name = region.name
        self._region = region
        self._view = slot[region.offset : region.offset + region.size]
        self._lengths: Sequence[int] = ()
        self._dimensions: tuple[int, ...] = ()
        if region.datatype == BYTES:
            per_row = math.prod(region.shape[1:])
            self._offsets = element_offsets(self._view, [count * per_row for count in counts])
        else:
            row_bytes = region.size // region.shape[0]
            self._offsets = [0]
            for count in counts:
                self._offsets.append(self._offsets[-1] + count * row_bytes)

    def cut_to(self, lengths: Sequence[int], padded: int, spec: tuple[int, ...]) -> None:
        """Give each request its own length back along the open dimensions that have the padded one."""
        self._lengths = lengths
        self._dimensions = tuple(
            at for at, size in enumerate(spec) if at and size == -1 and self._region.shape[at] == padded
        )

    def part(self, index: int, rows: int) -> Tensor:
        """The tensor of the batch's request number `index`, which has `rows` rows."""
        region = self._region
        data = self._view[self._offsets[index] : self._offsets[index + 1]]
        tensor = Tensor(region.name, region.datatype, (rows, *region.shape[1:]), data)
        if not self._dimensions:
            return tensor
        cut: list[slice] = [slice(None)] * len(region.shape)
        for dimension in self._dimensions:
            cut[dimension] = slice(self._lengths[index])
        array = np.ascontiguousarray(tensor.to_numpy()[tuple(cut)])
        if region.datatype == BYTES:
            return Tensor.from_numpy(region.name, array)
        return Tensor(region.name, region.datatype, array.shape, memoryview(array.tobytes()))


def _pad(datatype: str, value: float) -> float:
    """The pad value as numpy takes it: BF16 travels as its bit patterns."""
    return int(np.float32(value).view(np.uint32) >> 16) if datatype == "BF16" else value


def _array(slot: memoryview, offset: int, datatype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = numpy_type(datatype)
    if offset + math.prod(shape) * dtype.itemsize > len(slot):
        raise ValueError("the batch does not fit its slot")
    return np.ndarray(shape, dtype, slot, offset)


def _copy(slot: memoryview, offset: int, tensors: Sequence[Tensor]) -> int:
    """Copy data one behind the other into a slot; returns the end. Raises ValueError when it does not fit."""
    if len(tensors) > 1 and len(tensors[0].data) < _BIG_TENSOR_BYTES:
        joined = b"".join([tensor.data for tensor in tensors])
        end = offset + len(joined)
        slot[offset:end] = joined
        return end
    for tensor in tensors:
        end = offset + len(tensor.data)
        slot[offset:end] = tensor.data
        offset = end
    return offset
