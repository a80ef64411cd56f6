"""One partition: segment files of batches, one after the other, and those who wait for more.

A segment is named after its first offset and only ever appended to. Its sparse index (one entry per 4 KiB) lives in
memory and is rebuilt at the start by walking the batches, whose checksums also show where a torn tail is to be cut.
Nothing else is kept in memory: a fetch is one read of a contiguous range out of the page cache.

Durability is Kafka's: an acknowledged batch has been handed to the kernel, so it survives kill -9 of this process. It
is forced to the disk by a clean stop only: a power cut may cost the last seconds.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path

from kio.schema.errors import ErrorCode

from deploy.embedded.log_batch import (
    COMPRESSION,
    HEADER,
    Appended,
    Batch,
    Sequences,
    accept,
    find_time,
    place,
    read_batch,
)
from deploy.embedded.log_config import TopicConfig
from deploy.embedded.log_wire import NOWHERE, LogError

log = logging.getLogger(__name__)

INDEX_INTERVAL = 4096
TAIL_BYTES = 16 * 1024
_LENGTH = struct.Struct(">i")
_OFFSETS = struct.Struct(">q15xi")  # base offset and last offset delta


class Segment:
    """One file and its index: a batch with `offsets[i]` is at `positions[i]`, the latest before it has `times[i]`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base_offset = int(path.stem)
        self.size = 0
        self.first_timestamp = self.max_timestamp = NOWHERE
        self._offsets, self._positions, self._times = array("q"), array("q"), array("q")
        self._tail: tuple[int, bytes] = (NOWHERE, b"")  # offset and bytes of the last batch, if it is a small one
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def recover(self, next_offset: int, sequences: Sequences) -> int:
        """Index the batches of the file, cut what follows the last intact one, return the offset after it."""
        length = os.fstat(self._file).st_size
        if length:
            with mmap.mmap(self._file, length, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
                while (batch := read_batch(data, self.size)) and batch.base_offset >= next_offset:
                    self._index(batch)
                    sequences.record(batch)
                    next_offset = batch.next_offset
        if length > self.size:
            log.warning("%s: cut %d bytes behind the last intact batch", self.path, length - self.size)
            os.ftruncate(self._file, self.size)
        return next_offset

    def append(self, batch: Batch, header: bytes, body: memoryview) -> None:
        """Write the whole batch or nothing: a piece that a full disk took is cut off again."""
        position, size = self.size, len(header) + len(body)
        if size <= TAIL_BYTES:
            tail = header + body
            written = os.pwrite(self._file, tail, position)
            self._tail = batch.base_offset, tail
        else:
            written = os.pwritev(self._file, (header, body), position)
            self._tail = NOWHERE, b""
        if written != size:
            self._tail = NOWHERE, b""
            os.ftruncate(self._file, position)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._index(batch)

    def read(self, offset: int, max_bytes: int, *, whole_batch: bool) -> bytes | None:
        """Bytes from the batch that holds `offset` on, None when that lies behind the last.

        Only the last batch may be cut. The first is whole even beyond `max_bytes` if asked for, or nothing comes.
        """
        first, tail = self._tail
        if offset == first and len(tail) <= max_bytes:
            return tail
        position = self._locate(offset)
        if position is None:
            return None
        data = os.pread(self._file, min(max(max_bytes, HEADER.size), self.size - position), position)
        first_bytes = _size(data)
        if first_bytes <= max_bytes:
            return data
        return os.pread(self._file, first_bytes, position) if whole_batch else b""

    def find_time(self, timestamp: int) -> tuple[int, int]:
        """Time and offset of the first record at or after `timestamp`, which must not be past `max_timestamp`."""
        position = self._positions[max(bisect_left(self._times, timestamp) - 1, 0)]
        while True:
            header = os.pread(self._file, HEADER.size, position)
            if HEADER.unpack(header)[8] >= timestamp:
                return find_time(os.pread(self._file, _size(header), position), timestamp)
            position += _size(header)

    def close(self, *, keep: bool) -> None:
        """Force the file to the disk, or delete it."""
        if keep:
            os.fsync(self._file)
        else:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _index(self, batch: Batch) -> None:
        if not self._positions or self.size - self._positions[-1] >= INDEX_INTERVAL:
            self._offsets.append(batch.base_offset)
            self._positions.append(self.size)
            self._times.append(self.max_timestamp)
        if not self.size:
            self.first_timestamp = batch.max_timestamp
        self.size += batch.size
        self.max_timestamp = max(self.max_timestamp, batch.max_timestamp)

    def _locate(self, offset: int) -> int | None:
        if not self.size:
            return None
        entry = max(bisect_right(self._offsets, offset) - 1, 0)
        position = start = self._positions[entry]
        if self._offsets[entry] < offset:
            headers = os.pread(self._file, INDEX_INTERVAL + HEADER.size, start)
            end = min(start + INDEX_INTERVAL, self.size)  # what begins there has an entry of its own
            while position < end and _last_offset(headers, position - start) < offset:
                position += _size(headers, position - start)
        return position if position < self.size else None


def _size(header: bytes, at: int = 0) -> int:
    return int(_LENGTH.unpack_from(header, at + 8)[0]) + 12  # the length field counts what follows it


def _last_offset(header: bytes, at: int) -> int:
    base, delta = _OFFSETS.unpack_from(header, at)
    return int(base + delta)


class Partition:
    """Segments in order, the producers' sequences, and the fetches that wait for the next append."""

    def __init__(self, folder: Path, config: TopicConfig, start_offset: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.end_offset = 0
        self.waiters: set[Callable[[], None]] = set()
        self._folder = folder
        self._sequences = Sequences()
        self._segments = [Segment(path) for path in sorted(folder.glob("*.log"))]
        for segment in self._segments:
            self.end_offset = segment.recover(max(self.end_offset, segment.base_offset), self._sequences)
        if not self._segments:
            self._roll()
        self.start_offset = max(start_offset, self._segments[0].base_offset)
        self.end_offset = max(self.end_offset, self.start_offset)

    def append(self, records: bytes, now_unix_ms: int) -> Appended:
        """Append the batch unless it is a repeat, wake who waits, and say where it lies."""
        batch, config, size = accept(records), self.config, len(records)
        if batch.attributes & COMPRESSION and not config.takes_compressed:  # Kafka would unpack it
            raise LogError(ErrorCode.unsupported_compression_type, "this topic takes uncompressed batches only")
        if size > config.max_message_bytes:
            raise LogError(ErrorCode.message_too_large, f"{size} bytes are more than max.message.bytes")
        if batch.producer_id >= 0 and (earlier := self._sequences.check(batch)):
            return earlier
        offset, append_time = self.end_offset, now_unix_ms if config.log_append_time else None
        placed, header = place(batch, records, offset, append_time)
        if 0 < self._segments[-1].size > config.segment_bytes - size:
            self._roll()
        self._segments[-1].append(placed, header, memoryview(records)[HEADER.size :])
        self._sequences.record(placed)
        self.end_offset = offset + batch.record_count
        self._wake()
        return Appended(offset, NOWHERE if append_time is None else append_time)

    def read(self, offset: int, max_bytes: int, *, whole_batch: bool) -> bytes:
        """Stored bytes from `offset` on, none at the end of the log."""
        if offset == self.end_offset:
            return b""
        if not self.start_offset <= offset < self.end_offset:
            raise LogError(ErrorCode.offset_out_of_range, f"{offset} is not in {self.start_offset}…{self.end_offset}")
        newest = self._segments[-1]
        if offset >= newest.base_offset:
            return newest.read(offset, max_bytes, whole_batch=whole_batch) or b""
        first = bisect_right(self._segments, offset, key=lambda segment: segment.base_offset) - 1
        found = (segment.read(offset, max_bytes, whole_batch=whole_batch) for segment in self._segments[first:])
        return next((data for data in found if data is not None), b"")

    def find_time(self, timestamp: int) -> tuple[int, int]:
        """Time and offset of the first record at or after `timestamp`, (-1, -1) when there is none."""
        for segment in self._segments:
            if segment.size and segment.max_timestamp >= timestamp:
                time, offset = segment.find_time(timestamp)
                return time, max(offset, self.start_offset)
        return NOWHERE, NOWHERE

    def delete_before(self, offset: int) -> None:
        """Forget the records below `offset`; a file goes once all its records are below it."""
        self.start_offset = max(self.start_offset, offset)
        while len(self._segments) > 1 and self._segments[1].base_offset <= self.start_offset:
            self._segments.pop(0).close(keep=False)

    def enforce_retention(self, now_unix_ms: int) -> None:
        """Delete the oldest segments that are too old or too much; one whose records age takes no more of them."""
        config = self.config
        horizon = now_unix_ms - config.retention_ms if config.retention_ms >= 0 else NOWHERE
        if self._segments[-1].size and self._segments[-1].first_timestamp < horizon:
            self._roll()
        size = sum(segment.size for segment in self._segments)
        excess = size - config.retention_bytes if config.retention_bytes >= 0 else 0
        while len(self._segments) > 1:
            oldest = self._segments[0]
            if oldest.max_timestamp >= horizon and oldest.size > excess:
                break
            excess -= oldest.size
            self.delete_before(self._segments[1].base_offset)

    def close(self, *, keep: bool) -> None:
        """Close the files, or delete them; who waits is woken to see it."""
        for segment in self._segments:
            segment.close(keep=keep)
        self._wake()

    def _wake(self) -> None:
        for waiter in self.waiters:  # they only take note: the set stays as it is
            waiter()

    def _roll(self) -> None:
        self._segments.append(Segment(self._folder / f"{self.end_offset:020}.log"))
