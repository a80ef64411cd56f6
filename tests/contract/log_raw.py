"""Kafka without a client library: batches made by hand, requests sent as they are, so that a test can misbehave."""

from __future__ import annotations

import dataclasses
import io
import socket
import struct
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Self, get_args, get_origin

from crc32c import crc32c
from kio.index import load_request_schema, load_response_schema
from kio.serial import entity_reader, entity_writer

from tests.helpers import wait_until_sync

PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH = 0, 1, 2, 3, 8, 9
DESCRIBE_GROUPS, INIT_PRODUCER_ID, DESCRIBE_CONFIGS = 15, 22, 32
PRODUCE_VERSION, FETCH_VERSION = 8, 11
_HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = _HEADER.size


def varint(value: int) -> bytes:
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes(out) + bytes([zigzag])


def make_batch(
    values: Sequence[bytes],
    *,
    timestamps: Sequence[int] = (),
    producer: tuple[int, int, int] = (-1, -1, -1),
    attributes: int = 0,
) -> bytes:
    """A record batch of format 2; `producer` is id, epoch and first sequence number."""
    times = list(timestamps) or [1_000] * len(values)
    records = b""
    for delta, (value, time) in enumerate(zip(values, times, strict=True)):
        body = b"\0" + varint(time - times[0]) + varint(delta) + varint(-1) + varint(len(value)) + value + varint(0)
        records += varint(len(body)) + body
    checked = (
        struct.pack(">hiqqqhii", attributes, len(values) - 1, times[0], max(times), *producer, len(values)) + records
    )
    return struct.pack(">qiibI", 0, len(checked) + 9, -1, 2, crc32c(checked)) + checked


def batch_with_headers(records: Sequence[tuple[bytes, Sequence[tuple[bytes, bytes]]]]) -> bytes:
    """A batch of values with headers, whose names are written as they are."""
    packed = b""
    for number, (value, headers) in enumerate(records):
        body = b"\0" + varint(0) + varint(number) + varint(-1) + varint(len(value)) + value + varint(len(headers))
        for pair in headers:
            for part in pair:
                body += varint(len(part)) + part
        packed += varint(len(body)) + body
    count = len(records)
    checked = struct.pack(">hiqqqhii", 0, count - 1, 1_000, 1_000, -1, -1, -1, count) + packed
    return struct.pack(">qiibI", 0, len(checked) + 9, -1, 2, crc32c(checked)) + checked


UNREADABLE = (b"x", [(b"\xff\xfe\xfd\xfc", b"")])
"""A record with a header whose name is no text, which a broker does not look at."""


def unreadable_batch(records: int) -> bytes:
    """A batch whose last record cannot be read."""
    return batch_with_headers([(b"x", [])] * (records - 1) + [UNREADABLE])


class StoredBatch(NamedTuple):
    """The header of a batch as a broker returns it."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    checksum: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int
    records: bytes
    is_intact: bool


def split_batches(data: bytes) -> list[StoredBatch]:
    """The whole batches in fetched bytes."""
    batches, position = [], 0
    while position + HEADER_BYTES <= len(data):
        fields = _HEADER.unpack_from(data, position)
        end = position + 12 + fields[1]
        if end > len(data):
            break
        is_intact = crc32c(data[position + 21 : end]) == fields[4]
        batches.append(StoredBatch._make((*fields, data[position + HEADER_BYTES : end], is_intact)))
        position = end
    return batches


class RawClient:
    """One connection, one request at a time."""

    def __init__(self, bootstrap: str, *, seconds: float = 10.0) -> None:
        host, port = bootstrap.split(",", maxsplit=1)[0].rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=seconds)
        self._file = self._socket.makefile("rb")
        self.correlation = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def send(self, api: int, version: int, fields: dict[str, Any]) -> None:
        """Send a request made of plain values, lists of dictionaries for arrays."""
        schema = load_request_schema(api, version)
        self.correlation += 1
        header = {"request_api_key": api, "request_api_version": version, "correlation_id": self.correlation}
        out = io.BytesIO()
        for kind, values in ((schema.__header_schema__, {**header, "client_id": "raw"}), (schema, fields)):
            entity_writer(kind)(out, build(kind, values))
        self.send_bytes(struct.pack(">i", out.tell()) + out.getvalue())

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, api: int, version: int) -> Any:
        """The next answer; ConnectionError when the broker hung up instead."""
        size = self._file.read(4)
        if len(size) < 4:
            raise ConnectionError("the broker closed the connection")
        frame = self._file.read(int.from_bytes(size))
        schema = load_response_schema(api, version)
        header, width = entity_reader(schema.__header_schema__)(frame, 0)
        assert header.correlation_id == self.correlation
        body, size_of_body = entity_reader(schema)(frame, width)
        assert width + size_of_body == len(frame), "bytes are left after the answer"
        return body

    def ask(self, api: int, version: int, fields: dict[str, Any]) -> Any:
        """Send a request and return its answer."""
        self.send(api, version, fields)
        return self.receive(api, version)

    def produce(self, topic: str, *batches: bytes, acks: int = -1, version: int = PRODUCE_VERSION) -> Any:
        """One batch each for partition 0, 1, …; returns the partitions' answers in this order."""
        parts = [{"index": index, "records": batch} for index, batch in enumerate(batches)]
        fields = {"acks": acks, "topic_data": [{"name": topic, "partition_data": parts}]}
        answers = self.ask(PRODUCE, version, fields).responses[0].partition_responses
        return sorted(answers, key=lambda part: part.index)

    def fetch(self, topic: str, *offsets: int, **options: int) -> Any:
        """From partition 0, 1, … at these offsets; returns the partitions' answers."""
        fields = fetch_fields(topic, *offsets, **options)
        answers = self.ask(FETCH, FETCH_VERSION, fields).responses[0].partitions
        return sorted(answers, key=lambda part: part.partition_index)

    def offsets(self, topic: str, partitions: int, moment: int = -1) -> Any:
        """The partitions' answers to ListOffsets for one moment."""
        parts = [{"partition_index": index, "timestamp": moment} for index in range(partitions)]
        fields = {"replica_id": -1, "topics": [{"name": topic, "partitions": parts}]}
        return self.ask(LIST_OFFSETS, 2, fields).topics[0].partitions

    def has_leaders(self, topic: str, partitions: int) -> bool:
        return all(part.error_code == 0 for part in self.offsets(topic, partitions))

    def producer_id(self) -> int:
        """A fresh producer id; a broker that just started gives none yet."""
        answers: list[Any] = []

        def has_one() -> bool:
            answers.append(self.ask(INIT_PRODUCER_ID, 0, {"transactional_id": None}))
            return bool(answers[-1].error_code == 0)

        wait_until_sync(has_one, "no producer id was given")
        return int(answers[-1].producer_id)


def fetch_fields(
    topic: str,
    *offsets: int,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 1 << 24,
    partition_max_bytes: int = 1 << 20,
) -> dict[str, Any]:
    parts = [
        {"partition": index, "fetch_offset": offset, "partition_max_bytes": partition_max_bytes}
        for index, offset in enumerate(offsets)
    ]
    return {
        "max_wait": max_wait_ms,
        "min_bytes": min_bytes,
        "max_bytes": max_bytes,
        "topics": [{"topic": topic, "partitions": parts}],
    }


def build(schema: Any, fields: dict[str, Any]) -> Any:
    """A kio entity out of plain values; what is not named gets its default or zero."""
    hints = {field.name: field for field in dataclasses.fields(schema)}
    values: dict[str, Any] = {}
    for name, field in hints.items():
        kind = field.metadata.get("kafka_type", "")
        if name in fields:
            values[name] = _convert(field.type, kind, fields[name])
        elif field.default is dataclasses.MISSING:
            values[name] = _zero(field.type, kind)
    return schema(**values)


def _convert(hint: Any, kind: str, value: Any) -> Any:
    if kind.startswith("timedelta"):
        return timedelta(milliseconds=value)
    if isinstance(value, list):
        (nested, _) = get_args(next((a for a in get_args(hint) if get_origin(a) is tuple), hint))
        return tuple(build(nested, item) if isinstance(item, dict) else item for item in value)
    return value


def _zero(hint: Any, kind: str) -> Any:
    if type(None) in get_args(hint):
        return None
    if get_origin(hint) is tuple:
        return ()
    zeros: dict[str, Any] = {"string": "", "bool": False, "timedelta_i32": timedelta(0), "bytes": b""}
    return zeros.get(kind, 0)
