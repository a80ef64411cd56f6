"""Every request that is advertised can be read, and every answer that is written can be read by somebody else."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from deploy.embedded.log_wire import (
    Api,
    Fetched,
    Produced,
    ProtocolError,
    Request,
    read_request,
    write_fetched,
    write_produced,
    write_response,
)
from tests.contract.log_raw import build

EVERY_VERSION = [(api, version) for api in Api for version in range(api.lowest, api.highest + 1)]
CORRELATION = 77


def frame_of(api: int, version: int, fields: dict[str, Any]) -> bytes:
    schema = load_request_schema(api, version)
    head = {"request_api_key": api, "request_api_version": version, "correlation_id": CORRELATION, "client_id": "c"}
    out = io.BytesIO()
    for kind, values in ((schema.__header_schema__, head), (schema, fields)):
        entity_writer(kind)(out, build(kind, values))
    return out.getvalue()


def read_answer(api: int, version: int, framed: bytes) -> Any:
    size, correlation = struct.unpack_from(">ii", framed)
    assert (size, correlation) == (len(framed) - 4, CORRELATION)
    schema = load_response_schema(api, version)
    _, head = entity_reader(schema.__header_schema__)(framed, 4)
    body, width = entity_reader(schema)(framed, 4 + head)
    assert 4 + head + width == len(framed), "bytes are left after the answer"
    return body


@pytest.mark.parametrize(("api", "version"), EVERY_VERSION)
def test_every_advertised_version_is_read_and_answered(api: Api, version: int) -> None:
    request = read_request(frame_of(api, version, {}))
    assert (request.api, request.version, request.correlation_id) == (api, version, CORRELATION)
    if api is Api.PRODUCE:
        framed = write_produced(request, [("t", [Produced(3, 0, 1, 2, 0), Produced(4, ErrorCode.corrupt_message)])])
        (topic,) = read_answer(api, version, framed).responses
        assert [(part.index, part.error_code, part.base_offset) for part in topic.partition_responses] == [
            (3, 0, 1),
            (4, 2, -1),
        ]
    elif api is Api.FETCH:
        framed = write_fetched(request, [("t", [Fetched(3, 0, 9, 1, b"abc"), Fetched(4, 1)])], error=0)
        (topic,) = read_answer(api, version, framed).responses
        assert [
            (part.partition_index, part.error_code, part.high_watermark, part.records) for part in topic.partitions
        ] == [
            (3, 0, 9, b"abc"),
            (4, 1, -1, b""),
        ]
    else:
        read_answer(api, version, write_response(request, {}))


def test_fields_are_converted_at_every_depth_and_unknown_ones_left_out() -> None:
    request = Request(Api.METADATA, 5, CORRELATION, None)
    part = {"partition_index": 1, "leader_id": 1, "isr_nodes": (1,), "no_such_field": 1}
    framed = write_response(request, {"topics": [{"name": "t", "partitions": [part]}], "nonsense": 1})
    (topic,) = read_answer(Api.METADATA, 5, framed).topics
    assert (topic.name, topic.error_code, topic.partitions[0].isr_nodes) == ("t", 0, (1,))


def test_an_unknown_version_of_apiversions_is_answered_in_version_0() -> None:
    request = read_request(struct.pack(">hhi", Api.API_VERSIONS, 99, CORRELATION) + b"anything")
    assert request.version == -1
    framed = write_response(request, {"error_code": ErrorCode.unsupported_version})
    assert read_answer(Api.API_VERSIONS, 0, framed).error_code == ErrorCode.unsupported_version


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\0",
        struct.pack(">hhi", 999, 0, 1),
        struct.pack(">hhi", Api.PRODUCE, 99, 1),
        struct.pack(">hhih", Api.PRODUCE, 8, 1, -1) + b"\x7f" * 20,
        frame_of(Api.METADATA, 5, {"topics": [{"name": "a-topic"}]})[:-6],
    ],
)
def test_what_cannot_be_read_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_request(frame)
