"""What can still be read of a record batch that the library gives up.

aiokafka unpacks a batch record by record and never gets past the first that it cannot decode, so that good ones behind
it would be lost. But each record of format 2 says how long it is: here a batch is walked by these lengths, and a record
that makes no sense costs only itself. A batch whose checksum is wrong or whose codec is not there yields nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from aiokafka import codec
from aiokafka.record.util import calc_crc32c, decode_varint

from contracts.adapters.kafka.connection import Partition, Record

_header = struct.Struct(">qiibIhiqqqhii")
_before_length, _checked_from = 12, 21
_magic = 2
_codecs, _stamped_by_the_log = 0x07, 0x08
_decoders: dict[int, Callable[[bytes], bytes]] = {
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}


class Salvage(NamedTuple):
    """The readable records of one batch from some offset on, and the offset behind the batch."""

    records: tuple[Record, ...]
    end: int


def salvage(data: bytes, partition: Partition, first: int) -> Salvage | None:
    """Read what can be read of the batch that holds offset `first`; None when no whole batch in `data` does."""
    position = 0
    while position + _header.size <= len(data):
        base, length, _, magic, crc, attributes, last, began, latest, *_ = _header.unpack_from(data, position)
        stop = position + _before_length + length
        if magic != _magic or length <= 0 or stop > len(data):
            return None
        if base <= first <= base + last:
            if calc_crc32c(data[position + _checked_from : stop]) != crc:
                return Salvage((), base + last + 1)
            times = (latest, 1) if attributes & _stamped_by_the_log else (began, 0)
            body = _unpacked(attributes & _codecs, data[position + _header.size : stop])
            found = (each for each in _records(body, partition, base, times) if each.offset >= first)
            return Salvage(tuple(found), base + last + 1)
        position = stop
    return None


def _unpacked(kind: int, body: bytes) -> bytes:
    if not kind:
        return body
    try:
        return _decoders[kind](body)
    except Exception:  # noqa: BLE001 - each codec has its own, and all mean that nothing can be read
        return b""


def _records(body: bytes, partition: Partition, base: int, times: tuple[int, int]) -> Iterator[Record]:
    position = 0
    while position < len(body):
        try:
            size, start = decode_varint(bytearray(body[position : position + 10]))
        except (IndexError, ValueError):
            return
        start, position = position + start, position + start + size
        if size <= 0 or position > len(body):
            return
        try:
            yield _record(bytearray(body[start:position]), partition, base, times)
        except (IndexError, ValueError):  # a UnicodeDecodeError is one
            continue


def _record(body: bytearray, partition: Partition, base: int, times: tuple[int, int]) -> Record:
    """A record from its attributes on. Raises IndexError and ValueError for what is none."""
    time_delta, position = decode_varint(body, 1)
    offset_delta, position = decode_varint(body, position)
    key, position = _field(body, position)
    value, position = _field(body, position)
    count, position = decode_varint(body, position)
    headers = []
    for _ in range(count):
        name, position = _field(body, position)
        if name is None:
            msg = "a header without a name"
            raise ValueError(msg)
        content, position = _field(body, position)
        headers.append((name.decode(), content))
    if count < 0 or position != len(body):
        msg = "a record of another length than it says"
        raise ValueError(msg)
    began, kind = times
    return Record(
        topic=partition.topic,
        partition=partition.partition,
        offset=base + offset_delta,
        timestamp=began if kind else began + time_delta,
        timestamp_type=kind,
        key=key,
        value=value,
        headers=tuple(headers),
    )


def _field(body: bytearray, position: int) -> tuple[bytes | None, int]:
    """A field behind its length; -1 says that there is none."""
    size, position = decode_varint(body, position)
    if size < 0:
        return None, position
    if position + size > len(body):
        msg = "a field that goes beyond its record"
        raise ValueError(msg)
    return bytes(body[position : position + size]), position + size
