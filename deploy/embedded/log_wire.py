"""The door to Kafka's messages: which requests the embedded log answers, and how they are read and written.

kio's compiled readers take requests apart in one to three microseconds. Its writers need ten for each partition, so the
two answers that carry the traffic, Produce and Fetch, are packed here by hand. All others are filled in from plain
dictionaries: a handler names the fields it means; the version's own schema knows which of them exist and the rest.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cache, lru_cache
from typing import Any, Self, get_args, get_origin

import msgspec
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.serial.errors import SerialError

Fields = Mapping[str, Any]
Message = Any  # a request's body: kio's entity, whose fields differ from version to version
NOWHERE = -1  # no offset, no time: Kafka's value for both


class Api(enum.IntEnum):
    """Kafka's number of a request, with the lowest and the highest version that the log speaks.

    The highest ones stay below those that name topics by id, which a log with one broker has no use for.
    """

    lowest: int
    highest: int

    def __new__(cls, key: int, lowest: int, highest: int) -> Self:
        api = int.__new__(cls, key)
        api._value_, api.lowest, api.highest = key, lowest, highest
        return api

    PRODUCE = 0, 3, 8
    FETCH = 1, 4, 11
    LIST_OFFSETS = 2, 1, 6
    METADATA = 3, 1, 9
    OFFSET_COMMIT = 8, 2, 8
    OFFSET_FETCH = 9, 1, 7
    FIND_COORDINATOR = 10, 0, 3
    JOIN_GROUP = 11, 0, 7
    HEARTBEAT = 12, 0, 4
    LEAVE_GROUP = 13, 0, 4
    SYNC_GROUP = 14, 0, 5
    DESCRIBE_GROUPS = 15, 0, 5
    LIST_GROUPS = 16, 0, 4
    API_VERSIONS = 18, 0, 3
    CREATE_TOPICS = 19, 2, 6
    DELETE_TOPICS = 20, 1, 5
    DELETE_RECORDS = 21, 0, 2
    INIT_PRODUCER_ID = 22, 0, 4
    DESCRIBE_CONFIGS = 32, 1, 4
    ALTER_CONFIGS = 33, 0, 2
    CREATE_PARTITIONS = 37, 0, 3
    DELETE_GROUPS = 42, 0, 2
    INCREMENTAL_ALTER_CONFIGS = 44, 0, 1


class LogError(Exception):
    """A refusal with the code that Kafka has for it."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(Exception):
    """Bytes that are no request this log can answer; the connection ends."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request as it came; version -1 stands for one of ApiVersions that is not known."""

    api: Api
    version: int
    correlation_id: int
    body: Message


class Produced(msgspec.Struct, frozen=True, gc=False):
    """What became of the batch for one partition."""

    partition: int
    error: int = 0
    base_offset: int = NOWHERE
    append_time: int = NOWHERE
    start_offset: int = NOWHERE


class Fetched(msgspec.Struct, frozen=True, gc=False):
    """What one partition has from the wanted offset on."""

    partition: int
    error: int = 0
    end_offset: int = NOWHERE
    start_offset: int = NOWHERE
    records: bytes = b""


_APIS = {int(api): api for api in Api}
_HEAD = struct.Struct(">hhi")
_FRAME = struct.Struct(">ii")
_SIZE = struct.Struct(">i")
_SESSION = struct.Struct(">hi")
_PART = struct.Struct(">ihqqq")  # a partition begins like this in both answers, before version 5 without the last field
_PART_BYTES = {version: _PART.size - 8 * (version < 5) for version in range(Api.FETCH.highest + 1)}  # noqa: PLR2004
_NO_THROTTLE, _NULL = _SIZE.pack(0), _SIZE.pack(-1)
_NO_RECORD_ERRORS = struct.pack(">ih", 0, -1)  # an empty array and a null message, in answers to Produce
_PRODUCE_WITH_ERRORS, _FETCH_WITH_SESSION, _FETCH_WITH_REPLICA = 8, 7, 11  # the versions that brought these fields


def read_request(frame: bytes) -> Request:
    """Raise ProtocolError when the frame is unreadable or not for this log."""
    try:
        key, version, correlation_id = _HEAD.unpack_from(frame)
        api = _APIS[key]
        if api.lowest <= version <= api.highest:
            read_header, read_body = _readers(key, version)  # by the number: an enum's hash is Python code
            body, _ = read_body(frame, read_header(frame, 0)[1])
            return Request(api, version, correlation_id, body)
    except (struct.error, KeyError, ValueError, SerialError) as error:
        raise ProtocolError(f"not a request that this log knows: {frame[:8].hex()}: {error}") from error
    if api is Api.API_VERSIONS:
        return Request(api, -1, correlation_id, None)
    raise ProtocolError(f"{api.name} version {version}: this log speaks {api.lowest} to {api.highest}")


def write_response(request: Request, fields: Fields) -> bytes:
    """The framed answer; fields that the request's version does not have are left out."""
    entity, write, tags = _writer(request.api, max(request.version, 0))
    out = io.BytesIO()
    write(out, _fill(entity, fields))
    return _frame(request, (tags, out.getvalue()))


def write_produced(request: Request, topics: Sequence[tuple[str, Sequence[Produced]]]) -> bytes:
    """The framed answer to Produce."""
    size, tail = _PART_BYTES[request.version], _NO_RECORD_ERRORS if request.version >= _PRODUCE_WITH_ERRORS else b""
    parts = [_SIZE.pack(len(topics))]
    for name, partitions in topics:
        parts.append(_topic(name, len(partitions)))
        for part in partitions:
            packed = _PART.pack(part.partition, part.error, part.base_offset, part.append_time, part.start_offset)
            parts += packed[:size], tail
    return _frame(request, (*parts, _NO_THROTTLE))


def write_fetched(request: Request, topics: Sequence[tuple[str, Sequence[Fetched]]], error: int = 0) -> bytes:
    """The framed answer to Fetch, with the stored bytes as they are. No session is ever opened."""
    version, size = request.version, _PART_BYTES[request.version]
    tail = _NULL + _NULL if version >= _FETCH_WITH_REPLICA else _NULL  # nothing aborted, no other replica preferred
    parts = [_NO_THROTTLE, _SESSION.pack(error, 0) if version >= _FETCH_WITH_SESSION else b"", _SIZE.pack(len(topics))]
    for name, partitions in topics:
        parts.append(_topic(name, len(partitions)))
        for part in partitions:
            end, records = part.end_offset, part.records
            packed = _PART.pack(part.partition, part.error, end, end, part.start_offset)
            parts += packed[:size], tail, _SIZE.pack(len(records)), records
    return _frame(request, parts)


def _frame(request: Request, parts: Sequence[bytes]) -> bytes:
    return b"".join((_FRAME.pack(sum(map(len, parts)) + 4, request.correlation_id), *parts))


@lru_cache(1024)
def _topic(name: str, count: int) -> bytes:
    raw = name.encode()
    return struct.pack(f">h{len(raw)}si", len(raw), raw, count)


@cache
def _readers(api: int, version: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    schema = load_request_schema(api, version)
    return entity_reader(schema.__header_schema__), entity_reader(schema)


@cache
def _writer(api: int, version: int) -> tuple[type, Callable[..., None], bytes]:
    schema = load_response_schema(api, version)
    return schema, entity_writer(schema), b"\0" if schema.__header_schema__.__version__ else b""  # no tagged fields


def _fill(entity: type, fields: Fields) -> Any:
    return entity(
        **{
            name: _convert(nested, fields[name]) if name in fields else default
            for name, nested, default in _plan(entity)
        }
    )


def _convert(nested: type | None, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_convert(nested, item) for item in value)
    return _fill(nested, value) if nested and isinstance(value, Mapping) else value


@cache
def _plan(entity: type) -> tuple[tuple[str, type | None, Any], ...]:
    return tuple((field.name, _nested(field.type), _default(field)) for field in dataclasses.fields(entity))


def _nested(hint: Any) -> type | None:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_nested, get_args(hint))), None)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if type(None) in get_args(field.type):
        return None
    zeros = {"bool": False, "bytes": b"", "string": "", "error_code": ErrorCode.none, "timedelta_i32": timedelta(0)}
    return () if get_origin(field.type) is tuple else zeros.get(field.metadata.get("kafka_type", ""), 0)
