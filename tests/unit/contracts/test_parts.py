"""What travels on joins topics, and a request's place in a job, come back as they went."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.codec import decode_headers, decode_request, encode_headers, encode_request, encode_step
from contracts.errors import InvalidRequest
from contracts.messages import Hop, Ran, Receipt, ReplyAddress, RequestBody, RequestHeaders, Status
from contracts.parts import (
    MarkerBody,
    PartBody,
    PartFailure,
    PartHeaders,
    PartKind,
    decode_marker,
    decode_part,
    decode_part_headers,
    encode_marker,
    encode_part,
    encode_part_headers,
    joins_partition,
)
from contracts.tensors import Tensor

PLAN = "0123456789abcdef" * 2
HOP = Hop("job-1", PLAN, "read-page@3", "crops/recognise#2", (3, 17), 1234)
ids = st.text("abcdefXYZ019._~-", min_size=1, max_size=64)
steps = st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable())
hops = st.builds(
    Hop,
    job=ids,
    plan=st.just(PLAN),
    pipeline=st.just("read-page@3"),
    step=st.text("abcz019._-/#", max_size=80),
    branch=st.lists(st.integers(0, 999_999_999), max_size=8).map(tuple),
    left_ms=st.none() | st.integers(0, 21_600_000),
)
headers = st.builds(
    RequestHeaders,
    id=ids,
    reply=st.none() | st.just(ReplyAddress("headrace.replies.svc", 3, "token")),
    ttl_ms=st.integers(0, 21_600_000),
    attempt=st.integers(1, 9),
    priority=st.sampled_from(["high", "normal", "low"]),
    tenant=st.sampled_from(["", "acme"]),
    traceparent=st.sampled_from(["", "00-1-2-01"]),
    hop=hops,
)


def tensor(name: str = "detect.boxes") -> Tensor:
    return Tensor.from_numpy(name, np.arange(6, dtype=np.float32).reshape(2, 3))


@given(headers)
def test_a_request_of_a_job_says_where_it_stands(sent: RequestHeaders) -> None:
    assert decode_headers(encode_headers(sent)) == sent


@given(headers, st.sampled_from(list(PartKind)), st.text("abc/019#", min_size=1, max_size=20))
def test_a_part_says_who_sends_it_and_what_it_is(request: RequestHeaders, kind: PartKind, source: str) -> None:
    assert request.hop is not None
    sent = PartHeaders(request, request.hop, kind, source)
    if request.hop.step:
        assert decode_part_headers(encode_part_headers(sent)) == sent
    else:
        with pytest.raises(InvalidRequest, match="step"):
            decode_part_headers(encode_part_headers(sent))


def test_a_submission_needs_no_job_of_its_own() -> None:
    pairs = [("v", b"1.0"), ("id", b"job-1"), ("plan", PLAN.encode()), ("pl", b"read-page@3")]
    assert decode_headers(pairs).hop == Hop("job-1", PLAN, "read-page@3")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan", b"short"),
        ("plan", b"Z" * 32),
        ("pl", b"read-page"),
        ("pl", b""),
        ("job", b"no spaces"),
        ("branch", b"1..2"),
        ("branch", b"-1"),
        ("job-ttl", b"soon"),
        ("branch", b".".join([b"1"] * 9)),
        ("step", b"s" * 513),
        ("step", b"\xff"),
    ],
)
def test_headers_that_contradict_themselves_are_invalid(name: str, value: bytes) -> None:
    pairs = dict(encode_headers(RequestHeaders("child", None, hop=HOP))) | {name: value}
    with pytest.raises(InvalidRequest):
        decode_headers(pairs.items())


def test_what_travels_past_the_model_comes_back_with_the_request() -> None:
    ran = Ran("detect", Receipt(worker="w1", batch_rows=4), (3,))
    sent = RequestBody((tensor("x"),), {"k": 5}, (tensor(),), ran)
    found = decode_request(encode_step(sent))
    assert found == sent


def test_a_direct_request_is_as_small_as_it_was() -> None:
    assert encode_step(RequestBody((tensor("x"),))) == encode_request([tensor("x")])


@pytest.mark.parametrize(
    "sent",
    [
        PartBody((tensor(), tensor("vote.label"))),
        PartBody(failure=PartFailure(Status.POISON, "the model failed", "forest", retryable=True)),
        PartBody(width=0),
        PartBody((tensor(),), width=10_000, ran=Ran("detect", Receipt())),
        PartBody(),
    ],
)
def test_a_part_comes_back_as_it_went(sent: PartBody) -> None:
    assert decode_part(encode_part(sent)) == sent


def test_a_marker_comes_back_as_it_went() -> None:
    sent = MarkerBody(("linear", "forest"), 17, is_closing=True, until_unix_ms=1_700_000_000_000)
    assert decode_marker(encode_marker(sent)) == sent


@pytest.mark.parametrize(
    "raw", [None, b"", b"\xc1", b"\x93\x01\x02\x03", b"\x82\xa3env\x01\xa4seen\x01", b"\x81" * 2000]
)
def test_rubbish_is_no_part(raw: bytes | None) -> None:
    with pytest.raises(InvalidRequest):
        decode_part(raw)
    with pytest.raises(InvalidRequest):
        decode_marker(raw)


def test_all_parts_of_a_job_meet_in_one_partition_of_those_there_are() -> None:
    found = {joins_partition(f"job-{number}", 7) for number in range(200)}
    assert found == set(range(7))
    assert joins_partition("123456789", 1 << 32) == 0xCBF43926  # the check value of CRC-32
