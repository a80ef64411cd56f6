"""One record batch (Kafka's format 2): a header of 61 bytes, and records that are not this log's business.

What a broker decides stands in the header: the base offset and leader epoch lie before the checksum's range, the append
time and its flag inside it, so only a stamped batch gets a new checksum. All after the header stays byte for byte.

`Sequences` makes an idempotent producer's retry harmless. Of each producer it knows the last batches in one partition:
a batch it has seen is answered again and not appended, a gap in the numbers is refused.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c
from kio.schema.errors import ErrorCode
from kio.serial.errors import SerialError
from kio.serial.readers import read_signed_varint, read_signed_varlong

from deploy.embedded.log_wire import NOWHERE, LogError

HEADER = struct.Struct(">qiibIhiqqqhii")
_CHECKED_FROM = 21  # the checksum covers all from the attributes on
_LENGTH_FROM = 12  # and the length field all after itself
_FORMAT = 2
COMPRESSION, _STAMPED, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_REMEMBERED_BATCHES = 5  # as many as a producer may have in flight
_REMEMBERED_PRODUCERS = 10_000  # in one partition; a bound on memory, the longest silent go first
_SEQUENCES = 1 << 31


class Batch(NamedTuple):
    """The header, field by field."""

    base_offset: int
    length: int
    leader_epoch: int
    format: int
    checksum: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return self.length + _LENGTH_FROM

    @property
    def next_offset(self) -> int:
        """The offset after its last record."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """Numbers wrap to 0."""
        return (self.base_sequence + self.last_offset_delta) % _SEQUENCES


def read_batch(data: bytes | memoryview, position: int = 0) -> Batch | None:
    """The intact batch that begins there, or None."""
    if len(data) - position < HEADER.size:
        return None
    batch = Batch._make(HEADER.unpack_from(data, position))
    end = position + batch.size
    if batch.format != _FORMAT or batch.size < HEADER.size or end > len(data):
        return None
    return batch if crc32c(memoryview(data)[position + _CHECKED_FROM : end]) == batch.checksum else None


def accept(records: bytes) -> Batch:
    """The one batch that a producer may send per partition and request."""
    batch = read_batch(records)
    if batch is None:
        raise LogError(ErrorCode.corrupt_message, "not a whole record batch of format 2, or its checksum is wrong")
    if batch.size != len(records) or batch.record_count != batch.last_offset_delta + 1 or batch.record_count < 1:
        raise LogError(ErrorCode.invalid_record, "a request carries exactly one batch per partition, without gaps")
    if batch.attributes & (_TRANSACTIONAL | _CONTROL):
        raise LogError(ErrorCode.invalid_record, "the embedded log has no transactions")
    return batch


def place(batch: Batch, records: bytes, base_offset: int, append_time: int | None) -> tuple[Batch, bytes]:
    """The batch as it is stored, and its header; the rest of `records` follows unchanged."""
    placed = Batch(base_offset, batch.length, 0, *batch[3:])
    if append_time is not None:
        placed = placed._replace(attributes=batch.attributes | _STAMPED, max_timestamp=append_time)
        checksum = crc32c(memoryview(records)[HEADER.size :], crc32c(HEADER.pack(*placed)[_CHECKED_FROM:]))
        placed = placed._replace(checksum=checksum)
    return placed, HEADER.pack(*placed)


def find_time(data: bytes, timestamp: int) -> tuple[int, int]:
    """Time and offset of a batch's first record at or after `timestamp`, which is not past the batch's last.

    Compressed records stay closed: their batch's first offset stands for them, never later than the exact answer.
    """
    batch = Batch._make(HEADER.unpack_from(data))
    if batch.attributes & _STAMPED:
        return batch.max_timestamp, batch.base_offset
    if not batch.attributes & COMPRESSION:
        for time, offset in _record_times(data, batch):
            if time >= timestamp:
                return time, offset
    return batch.base_timestamp, batch.base_offset


def _record_times(data: bytes, batch: Batch) -> Iterator[tuple[int, int]]:
    position = HEADER.size
    for _ in range(batch.record_count):
        try:
            length, width = read_signed_varint(data, position)
            position += width
            time, time_width = read_signed_varlong(data, position + 1)  # one byte of attributes before it
            delta, _ = read_signed_varint(data, position + 1 + time_width)
        except (SerialError, ValueError):  # the checksum was right: a producer's own nonsense
            return
        yield batch.base_timestamp + time, batch.base_offset + delta
        position += length


class Appended(NamedTuple):
    """Where a batch lies and, if the log stamped it, when it came."""

    base_offset: int = NOWHERE
    append_time: int = NOWHERE


class Sequences:
    """The last batches of each idempotent producer in one partition."""

    def __init__(self) -> None:
        self._producers: dict[int, tuple[int, deque[tuple[int, int, Appended]]]] = {}  # epoch; first, last, where

    def check(self, batch: Batch) -> Appended | None:
        """Where the batch was appended before, None when it is the next one; raises when it is neither."""
        if batch.producer_id not in self._producers:  # new, or long forgotten: any number begins
            return None
        epoch, batches = self._producers[batch.producer_id]
        if batch.producer_epoch < epoch:
            raise LogError(ErrorCode.invalid_producer_epoch, f"producer {batch.producer_id} has a newer epoch")
        wanted = 0
        if batch.producer_epoch == epoch:
            for first, last, appended in batches:
                if (first, last) == (batch.base_sequence, batch.last_sequence):
                    return appended
            wanted = (batches[-1][1] + 1) % _SEQUENCES
        if batch.base_sequence != wanted:
            message = f"producer {batch.producer_id} sent {batch.base_sequence}, {wanted} is next"
            raise LogError(ErrorCode.out_of_order_sequence_number, message)
        return None

    def record(self, batch: Batch) -> None:
        """Remember a batch that is in the log."""
        if batch.producer_id < 0:
            return
        epoch, batches = self._producers.pop(batch.producer_id, (-1, _nothing()))
        if epoch != batch.producer_epoch:
            batches = _nothing()
        appended = Appended(batch.base_offset, batch.max_timestamp if batch.attributes & _STAMPED else NOWHERE)
        batches.append((batch.base_sequence, batch.last_sequence, appended))
        self._producers[batch.producer_id] = batch.producer_epoch, batches  # now the last in the dictionary
        if len(self._producers) > _REMEMBERED_PRODUCERS:
            del self._producers[next(iter(self._producers))]


def _nothing() -> deque[tuple[int, int, Appended]]:
    return deque(maxlen=_REMEMBERED_BATCHES)
