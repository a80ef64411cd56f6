"""The shared-memory slots in which batches cross from ingest to engine and back.

One file per lease, mapped by both sides: `count` slots, each an input and an output region.

    | input 0 | output 0 | input 1 | output 1 | …     regions are multiples of 4 KiB, tensors start at 64 bytes

Three slots keep the engine busy: one runs, one is ready, one is being filled or emptied. A slot belongs to ingest until
its Batch is sent and again from its Done or Failed on; it is reused only after its responses were encoded. The file
lives in /dev/shm where there is one; plain mmap rather than multiprocessing.shared_memory, whose tracker would unlink
the segment when the engine dies.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from contracts.specs import ModelSpec, TensorSpec
from contracts.tensors import BYTES, type_sizes

SLOT_COUNT: Final = 3
ALIGNMENT: Final = 64  # a cache line, and what vector instructions like best
_page: Final = 4096
_unknown_dimension: Final = 256  # guess for a dimension that the spec leaves open
_element_bytes: Final = 1024  # guess for one BYTES element
_smallest: Final = 64 * 1024
_largest: Final = 256 * 1024 * 1024
FILE_PREFIX: Final = "headrace-"


def slots_folder() -> Path:
    """Where slot files live: memory when the platform shows it as a folder."""
    shared = Path("/dev/shm")  # noqa: S108 - the file is created exclusively, mode 0600
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def slots_path(lease_id: str) -> Path:
    """The slots file of a lease; the node agent removes it when the worker has ended."""
    return slots_folder() / f"{FILE_PREFIX}{lease_id}"


def align(offset: int, to: int = ALIGNMENT) -> int:
    """The next multiple of `to` at or above `offset`."""
    return -(-offset // to) * to


def row_bytes(tensor: TensorSpec) -> int:
    """Bytes of one row of a tensor, open dimensions and string lengths guessed."""
    elements = math.prod(_unknown_dimension if size < 0 else size for size in tensor.shape[1:])
    return elements * (_element_bytes if tensor.datatype == BYTES else type_sizes[tensor.datatype])


def region_bytes(spec: ModelSpec, tensors: Iterable[TensorSpec]) -> int:
    """Room that one side of a slot gets: the spec's own figure, else the largest batch, within reason."""
    if spec.slot_mib is not None:
        return align(int(spec.slot_mib * 1024 * 1024), _page)
    needed = sum(align(row_bytes(tensor) * spec.batching.max_batch_size) for tensor in tensors)
    return align(min(max(needed, _smallest), _largest), _page)


class SlotFile:
    """The mapped file; one side creates it, the other attaches."""

    def __init__(self, path: Path, mapped: mmap.mmap, count: int, input_bytes: int, output_bytes: int) -> None:
        self.path = path
        self.count, self.input_bytes, self.output_bytes = count, input_bytes, output_bytes
        self.memory = view = memoryview(mapped)
        stride = input_bytes + output_bytes
        self._inputs = [view[slot * stride : slot * stride + input_bytes] for slot in range(count)]
        self._outputs = [view[slot * stride + input_bytes : (slot + 1) * stride] for slot in range(count)]

    @classmethod
    def create(cls, path: Path, count: int, input_bytes: int, output_bytes: int) -> SlotFile:
        """Make a fresh file, replacing a leftover of the same lease, and touch every page once.

        The first write to a page costs several times a later one; better at start than under the first batches.
        """
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        size = count * (input_bytes + output_bytes)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, size)
            mapped = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        for position in range(0, size, _page):
            mapped[position] = 0
        return cls(path, mapped, count, input_bytes, output_bytes)

    @classmethod
    def attach(cls, path: Path, count: int, input_bytes: int, output_bytes: int) -> SlotFile:
        """Map an existing file. Raises OSError or ValueError when it is missing or shorter than announced."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            mapped = mmap.mmap(descriptor, count * (input_bytes + output_bytes))
        finally:
            os.close(descriptor)
        return cls(path, mapped, count, input_bytes, output_bytes)

    def input(self, slot: int) -> memoryview:
        """The writable input region of a slot."""
        return self._inputs[slot]

    def output(self, slot: int) -> memoryview:
        """The writable output region of a slot."""
        return self._outputs[slot]

    def close(self) -> None:
        """Let go of the mapping; it is unmapped with the last array that looks into it.

        Not by mmap.close(): arrays that numpy made over a buffer need not hold an export of it, so the mapping would
        vanish under them.
        """
        self._inputs.clear()
        self._outputs.clear()
        self.memory = memoryview(b"")


class SlotPool:
    """Which slots are free, and the sequence number of each use."""

    def __init__(self, count: int) -> None:
        self._free = deque(range(count))
        self._sequences = [0] * count

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def acquire(self) -> tuple[int, int] | None:
        """Take a slot: its number and the sequence of this use; None when all are taken."""
        if not self._free:
            return None
        slot = self._free.popleft()
        self._sequences[slot] += 1
        return slot, self._sequences[slot]

    def is_current(self, slot: int, sequence: int) -> bool:
        """Whether an answer belongs to the slot's present use."""
        return 0 <= slot < len(self._sequences) and self._sequences[slot] == sequence and slot not in self._free

    def release(self, slot: int) -> None:
        """Give a slot back; raises ValueError when it is free already."""
        if slot in self._free:
            msg = f"slot {slot} is free already"
            raise ValueError(msg)
        self._free.append(slot)
