"""The codec: what goes out comes back, and nothing that comes in can do worse than InvalidRequest."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import codec
from contracts.errors import InvalidRequest
from contracts.messages import (
    ErrorDetail,
    Receipt,
    ReplyAddress,
    RequestHeaders,
    ResponseBody,
    Status,
)
from contracts.tensors import Tensor

NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,20}\Z")
ADDRESSES = st.builds(ReplyAddress, st.just("headrace.replies.x"), st.integers(0, 10**6), st.just("token"))
HEADERS = st.builds(
    RequestHeaders,
    id=st.from_regex(r"\A[A-Za-z0-9._~-]{1,64}\Z"),
    reply=st.none() | ADDRESSES,
    ttl_ms=st.integers(0, 6 * 3_600_000),
    model=st.none() | NAMES,
    version=st.none() | st.integers(0, 2**31 - 1),
    attempt=st.integers(1, 1000),
    priority=st.sampled_from(codec.PRIORITIES),
    tenant=st.just("") | NAMES,
    traceparent=st.sampled_from(["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]),
)
ROW = Tensor.from_numpy("row", np.arange(4, dtype=np.float32).reshape(1, 4))
GOOD = [("v", b"1.0"), ("id", b"r-1"), ("ttl", b"1000"), ("re", b"headrace.replies.x/3/tok")]


@given(HEADERS)
def test_headers_survive_the_round_trip(headers: RequestHeaders) -> None:
    assert codec.decode_headers(codec.encode_headers(headers)) == headers


def test_a_request_body_is_decoded_without_copying_its_tensors() -> None:
    raw = codec.encode_request((ROW,), {"k": 1})
    body = codec.decode_request(raw)
    assert body.parameters == {"k": 1}
    assert body.inputs[0].data.obj is raw
    assert body.inputs[0].to_numpy().tolist() == [[0, 1, 2, 3]]


def test_another_msgpack_library_reads_and_writes_the_same_body() -> None:
    plain = msgpack.unpackb(codec.encode_request((ROW,)))
    assert plain == {"inputs": [{"name": "row", "datatype": "FP32", "shape": [1, 4], "data": bytes(ROW.data)}]}
    plain["later_minor_field"] = {"nested": [1, 2, {"a": None}]}
    assert codec.decode_request(msgpack.packb(plain)).inputs[0].name == "row"


def test_a_response_survives_the_round_trip() -> None:
    body = ResponseBody("m", 2, (ROW,), receipt=Receipt("w", "cpu", computed_us=5), error=ErrorDetail("no", True))
    pairs = codec.encode_response_headers("r-1", Status.POISON, "tok")
    response, token = codec.decode_response(pairs, codec.encode_response(body))
    assert (response.id, response.status, token) == ("r-1", Status.POISON, "tok")
    assert response["row"].to_numpy().tolist() == ROW.to_numpy().tolist()
    assert response.receipt.computed_us == 5
    assert response.error == ErrorDetail("no", True)


@pytest.mark.parametrize("minor", [b"1.1", b"1.99"])
def test_a_later_minor_version_is_understood(minor: bytes) -> None:
    pairs = [("v", minor), *GOOD[1:], ("something-new", b"x")]
    assert codec.decode_headers(pairs).id == "r-1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("v", b"2.0"), "protocol version 2"),
        (("v", b""), "header v"),
        (("v", None), "header v"),
        (("id", b""), "header id"),
        (("id", b"a b"), "header id"),
        (("id", b"x" * 65), "header id"),
        (("id", b"\xff"), "not valid text"),
        (("ttl", b"-1"), "header ttl"),
        (("ttl", b"99999999999999999999"), "header ttl"),
        (("ttl", "१२".encode()), "header ttl"),
        (("re", b"headrace.replies.x/3"), "header re"),
        (("re", b"headrace.replies.x/0000000009999999999999/x"), "header re"),
        (("re", b"../etc/3/x\n"), "header re"),
        (("model", b"../x"), "header model"),
        (("version", b"1e9"), "header version"),
        (("priority", b"urgent"), "header priority"),
        (("tenant", b"A B"), "header tenant"),
    ],
)
def test_malformed_headers_are_named(change: tuple[str, bytes | None], words: str) -> None:
    pairs: list[tuple[str, bytes | None]] = [pair for pair in GOOD if pair[0] != change[0]]
    with pytest.raises(InvalidRequest, match=words):
        codec.decode_headers([*pairs, change])


@pytest.mark.parametrize("name", ["v", "id"])
def test_a_missing_header_is_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        codec.decode_headers([pair for pair in GOOD if pair[0] != name])


def test_a_record_with_rubbish_in_it_can_still_be_answered() -> None:
    request_id, reply = codec.decode_address([*GOOD, ("v", b"9.9"), ("ttl", b"x")])
    assert request_id == "r-1"
    assert reply == ReplyAddress("headrace.replies.x", 3, "tok")


@given(st.lists(st.tuples(st.sampled_from(["v", "id", "re", "ttl", "model"]), st.none() | st.binary(max_size=40))))
def test_no_headers_do_worse_than_invalid(pairs: list[tuple[str, bytes | None]]) -> None:
    codec.decode_address(pairs)
    with contextlib.suppress(InvalidRequest):
        codec.decode_headers(pairs)


@given(st.binary(max_size=300))
def test_no_body_does_worse_than_invalid(raw: bytes) -> None:
    for decode in (codec.decode_request, lambda value: codec.decode_response(GOOD, value)):
        with contextlib.suppress(InvalidRequest):
            decode(raw)


@given(st.data())
def test_no_mutation_of_a_good_body_does_worse_than_invalid(data: st.DataObject) -> None:
    raw = bytearray(codec.encode_request((ROW,), {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        body = codec.decode_request(bytes(raw))
    except InvalidRequest:
        return
    for tensor in body.inputs:
        try:
            tensor.to_numpy()
        except InvalidRequest:
            continue


BOMBS = {
    "nested arrays": b"\x91" * 1_000_000,
    "nested arrays in an unknown field": b"\x82\xa6inputs\x90\xa1x" + b"\x91" * 1_000_000,
    "nested maps": b"\x81\xa1a" * 300_000,
    "a million empty maps": b"\x82\xa6inputs\x90\xa1x\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000,
    "a million empty tensors": b"\x81\xa6inputs\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000,
    "an array that claims 2**32 - 1 elements": b"\x81\xa6inputs\xdd\xff\xff\xff\xff",
    "a tensor that claims 4 GiB": b"\x81\xa6inputs\x91\x81\xa4data\xc6\xff\xff\xff\xff",
    "a shape of a million dimensions": b"\x81\xa6inputs\x91\x81\xa5shape\xdd\x00\x0f\x42\x40" + b"\x01" * 1_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_memory_in_proportion_to_its_bytes(name: str) -> None:
    raw = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as caught:
            codec.decode_request(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(raw) + 1_000_000
    assert len(str(caught.value)) < 300
