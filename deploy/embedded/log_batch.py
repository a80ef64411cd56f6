"""One record batch (Kafka's format 2): a header of 61 bytes, and records that are not this log's business.

What a broker decides stands in the header: the base offset and leader epoch lie before the checksum's range, the append
time and its flag inside it, so only a stamped batch gets a new checksum. All after the header stays byte for byte.

A lone request waits for appends, and mostly finds the caches cold, where each further function and object costs
microseconds by the dozen: hence structures made in C, and a header that is unpacked once and packed once.

`Sequences` makes an idempotent producer's retry harmless. Of each producer it knows the last batches in one partition:
a batch it has seen is answered again and not appended, a gap in the numbers is refused.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

import msgspec
from crc32c import crc32c
from kio.schema.errors import ErrorCode
from kio.serial.errors import SerialError
from kio.serial.readers import read_signed_varint, read_signed_varlong

from deploy.embedded.log_wire import NOWHERE, LogError

HEADER = struct.Struct(">qiibIhiqqqhii")
_UNCHECKED, _CHECKED = struct.Struct(">qiibI"), struct.Struct(">hiqqqhii")  # its two parts
_CHECKED_FROM = _UNCHECKED.size  # the checksum covers all from the attributes on
_LENGTH_FROM = 12  # and the length field all after itself
_FORMAT = 2
COMPRESSION, _STAMPED, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_REMEMBERED_BATCHES = 5  # as many as a producer may have in flight
_REMEMBERED_PRODUCERS = 10_000  # in one partition; a bound on memory, the longest silent go first
_SEQUENCES = 1 << 31


class Batch(msgspec.Struct, frozen=True, gc=False):
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
    batch = Batch(*HEADER.unpack_from(data, position))
    size = batch.length + _LENGTH_FROM
    if batch.format != _FORMAT or not HEADER.size <= size <= len(data) - position:
        return None
    checked = memoryview(data)[position + _CHECKED_FROM : position + size]
    return batch if crc32c(checked) == batch.checksum else None


def accept(records: bytes) -> Batch:
    """The one batch that a producer may send per partition and request."""
    batch = read_batch(records)
    if batch is None:
        raise LogError(ErrorCode.corrupt_message, "not a whole record batch of format 2, or its checksum is wrong")
    count = batch.record_count
    if batch.length + _LENGTH_FROM != len(records) or count != batch.last_offset_delta + 1 or count < 1:
        raise LogError(ErrorCode.invalid_record, "a request carries exactly one batch per partition, without gaps")
    if batch.attributes & (_TRANSACTIONAL | _CONTROL):
        raise LogError(ErrorCode.invalid_record, "the embedded log has no transactions")
    return batch


def place(batch: Batch, records: bytes, base_offset: int, append_time: int | None) -> tuple[Batch, bytes]:
    """The batch as it is stored, and its header; the rest of `records` follows unchanged."""
    attributes, latest, checksum = batch.attributes, batch.max_timestamp, batch.checksum
    if append_time is not None:
        attributes, latest = attributes | _STAMPED, append_time
    checked = (
        attributes,
        batch.last_offset_delta,
        batch.base_timestamp,
        latest,
        batch.producer_id,
        batch.producer_epoch,
        batch.base_sequence,
        batch.record_count,
    )
    packed = _CHECKED.pack(*checked)
    if append_time is not None:
        checksum = crc32c(memoryview(records)[HEADER.size :], crc32c(packed))
    unchecked = base_offset, batch.length, 0, _FORMAT, checksum
    return Batch(*unchecked, *checked), _UNCHECKED.pack(*unchecked) + packed


def find_time(data: bytes, timestamp: int) -> tuple[int, int]:
    """Time and offset of a batch's first record at or after `timestamp`, which is not past the batch's last.

    Compressed records stay closed: their batch's first offset stands for them, never later than the exact answer.
    """
    batch = Batch(*HEADER.unpack_from(data))
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


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where a batch lies and, if the log stamped it, when it came."""

    base_offset: int = NOWHERE
    append_time: int = NOWHERE


_Known = tuple[int, int, deque[tuple[int, int, int, int]]]  # epoch, next number; first, last, offset and time of each


class Sequences:
    """The last batches of each idempotent producer in one partition."""

    def __init__(self) -> None:
        self._producers: dict[int, _Known] = {}

    def check(self, batch: Batch) -> Appended | None:
        """Where the batch was appended before, None when it is the next one; raises when it is neither."""
        known = self._producers.get(batch.producer_id)
        if known is None:  # new, or long forgotten: any number begins
            return None
        epoch, wanted, batches = known
        if batch.producer_epoch < epoch:
            raise LogError(ErrorCode.invalid_producer_epoch, f"producer {batch.producer_id} has a newer epoch")
        if batch.producer_epoch > epoch:
            wanted = 0
        if batch.base_sequence == wanted:
            return None
        if batch.producer_epoch == epoch:
            for first, last, offset, time in batches:
                if (first, last) == (batch.base_sequence, batch.last_sequence):
                    return Appended(offset, time)
        message = f"producer {batch.producer_id} sent {batch.base_sequence}, {wanted} is next"
        raise LogError(ErrorCode.out_of_order_sequence_number, message)

    def record(self, batch: Batch) -> None:
        """Remember a batch that is in the log."""
        if batch.producer_id < 0:
            return
        producers, producer, epoch = self._producers, batch.producer_id, batch.producer_epoch
        known = producers.pop(producer, None)
        batches = known[2] if known and known[0] == epoch else deque(maxlen=_REMEMBERED_BATCHES)
        first, last = batch.base_sequence, batch.last_sequence
        time = batch.max_timestamp if batch.attributes & _STAMPED else NOWHERE
        batches.append((first, last, batch.base_offset, time))
        producers[producer] = epoch, (last + 1) % _SEQUENCES, batches  # now the last in the dictionary
        if len(producers) > _REMEMBERED_PRODUCERS:
            del producers[next(iter(producers))]
