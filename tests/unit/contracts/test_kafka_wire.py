"""Fetch and Produce packed by hand, held against what the library makes of the same fields."""

from __future__ import annotations

import io

from aiokafka import TopicPartition
from aiokafka.protocol.fetch import FetchRequest_v4, FetchResponse_v4
from aiokafka.protocol.produce import ProduceRequest_v3, ProduceResponse_v3
from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.kafka import wire

names = st.text("abcdefghij.-0123456789", min_size=1, max_size=30)
numbers = st.integers(0, 2**31 - 1)
offsets = st.integers(0, 2**63 - 1)
codes = st.integers(-1, 100)
wishes = st.dictionaries(st.builds(TopicPartition, names, numbers), offsets, max_size=6)


def _grouped(fields: dict[TopicPartition, object]) -> list[tuple[str, list[tuple[object, ...]]]]:
    topics: dict[str, list[tuple[object, ...]]] = {}
    for (topic, partition), values in fields.items():
        topics.setdefault(topic, []).append((partition, *(values if isinstance(values, tuple) else (values,))))
    return list(topics.items())


_HEAD = b"\0\0\0\x09\0\0\0\7"


def test_the_library_reads_an_answer_through_its_request() -> None:
    heard: list[object] = []
    exchange = wire.Exchange(1, 4, b"", lambda data, at: data[at:], heard.append)
    stream = io.BytesIO(b"\0\0\0\7answer")
    assert exchange.parse_response_header(stream).correlation_id == 7
    assert exchange.RESPONSE_TYPE.decode(stream) == b"answer"
    assert heard == [b"answer"]


@given(numbers, names)
def test_a_frame_is_what_the_library_would_write(correlation_id: int, client: str) -> None:
    exchange = wire.fetch([(TopicPartition("t", 1), 2)], wait_ms=3, most_bytes=4, most_of_each=5)
    message = exchange.build_request_header(correlation_id, client).encode() + exchange.encode()
    assert exchange.frame(correlation_id, client) == len(message).to_bytes(4) + message


@given(wishes, numbers, numbers, numbers)
def test_a_fetch_is_packed_as_the_library_packs_it(
    asked: dict[TopicPartition, int], wait: int, most: int, each: int
) -> None:
    topics = _grouped({partition: (offset, each) for partition, offset in asked.items()})
    ours = wire.fetch(asked.items(), wait_ms=wait, most_bytes=most, most_of_each=each)
    assert ours.encode() == FetchRequest_v4(-1, wait, 1, most, 0, topics).encode()


@given(st.dictionaries(st.builds(TopicPartition, names, numbers), st.binary(max_size=50), max_size=6), numbers)
def test_a_produce_is_packed_as_the_library_packs_it(batches: dict[TopicPartition, bytes], timeout: int) -> None:
    ours = wire.produce(batches, timeout_ms=timeout)
    assert ours.encode() == ProduceRequest_v3(None, -1, timeout, _grouped(dict(batches))).encode()


aborted = st.none() | st.lists(st.tuples(offsets, offsets), max_size=3)
fetched = st.tuples(codes, offsets, offsets, aborted, st.none() | st.binary(max_size=80))


@given(st.dictionaries(st.builds(TopicPartition, names, numbers), fetched, max_size=6), numbers)
def test_a_fetch_answer_is_read_whatever_else_stands_in_it(
    parts: dict[TopicPartition, tuple[int, int, int, list[tuple[int, int]] | None, bytes | None]], throttle: int
) -> None:
    body = FetchResponse_v4(throttle, _grouped(dict(parts))).encode()
    found = {(topic, number): fields for topic, number, *fields in wire.read_fetched(_HEAD + body, len(_HEAD))}
    assert found.keys() == parts.keys()
    for partition, (code, _, _, _, records) in parts.items():
        assert found[partition] == [code, records or b""]


produced = st.tuples(codes, offsets, offsets)


@given(st.dictionaries(st.builds(TopicPartition, names, numbers), produced, max_size=6), numbers)
def test_a_produce_answer_is_read(parts: dict[TopicPartition, tuple[int, int, int]], throttle: int) -> None:
    topics = _grouped(dict(parts))
    body = ProduceResponse_v3(topics, throttle).encode()
    assert wire.ProduceAnswer.read(_HEAD + body, len(_HEAD)).topics == topics
