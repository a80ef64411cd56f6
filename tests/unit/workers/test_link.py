from __future__ import annotations

import itertools
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.link import (
    MAX_FRAME_BYTES,
    Batch,
    Done,
    Failed,
    FrameDecoder,
    Hello,
    Load,
    LoadFailed,
    Message,
    ModelToLoad,
    Ready,
    Region,
    Stop,
    encode,
)

texts, counts = st.text(max_size=20), st.integers(0, 2**40)
scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | texts
regions = st.lists(
    st.builds(Region, texts, texts, st.lists(counts, max_size=4).map(tuple), counts, counts), max_size=3
).map(tuple)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, texts, counts),
    st.builds(
        Load,
        st.lists(st.builds(ModelToLoad, texts, texts, texts), max_size=2).map(tuple),
        texts,
        *[counts] * 4,
        texts,
    ),
    st.builds(Ready, texts, st.floats(0, 1e6)),
    st.builds(LoadFailed, texts),
    st.builds(Batch, counts, counts, counts, counts, regions, st.dictionaries(texts, scalars, max_size=3)),
    st.builds(Done, counts, counts, regions, counts),
    st.builds(Failed, counts, counts, st.sampled_from(["error", "memory", "output"]), texts),
    st.builds(Stop),
)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    ends = [0, *sorted(position % (len(stream) + 1) for position in at), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(ends)]


@given(sent=st.lists(messages, max_size=6), at=st.lists(st.integers(0, 2**16), max_size=12))
def test_messages_arrive_whole_and_in_order_however_the_stream_is_cut(sent: list[Message], at: list[int]) -> None:
    decoder = FrameDecoder()
    pieces = cut(b"".join(map(encode, sent)), at)
    assert [message for piece in pieces for message in decoder.feed(piece)] == sent


@given(message=messages)
def test_nothing_is_yielded_before_the_last_byte(message: Message) -> None:
    decoder, frame = FrameDecoder(), encode(message)
    for position in range(len(frame) - 1):
        assert list(decoder.feed(frame[position : position + 1])) == []
    assert list(decoder.feed(frame[-1:])) == [message]


@given(message=messages)
def test_a_frame_is_a_length_and_a_msgpack_map_that_names_its_type(message: Message) -> None:
    frame = encode(message)
    assert struct.unpack("<I", frame[:4]) == (len(frame) - 4,)
    content: dict[str, Any] = msgpack.unpackb(frame[4:])
    assert content["type"] == type(message).__name__


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n",
        struct.pack("<I", MAX_FRAME_BYTES + 1),
        framed(b""),
        framed(b"\xc1"),
        framed(msgpack.packb({"type": "Unheard"})),
        framed(msgpack.packb({"type": "Done", "slot": "one"})),
        framed(msgpack.packb({"type": "Failed", "slot": 0, "sequence": 1, "kind": "other", "message": ""})),
        framed(b"\x91" * 200_000),
    ],
    ids=["http", "too-long", "empty", "no-msgpack", "unknown", "wrong-field", "wrong-kind", "nested"],
)
def test_a_peer_that_speaks_something_else_is_a_value_error(nonsense: bytes) -> None:
    with pytest.raises(ValueError, match="engine link"):
        list(FrameDecoder().feed(nonsense))


def test_what_came_before_nonsense_is_still_received() -> None:
    received = FrameDecoder().feed(encode(Stop()) + framed(b"\xc1"))
    assert next(received) == Stop()
    with pytest.raises(ValueError, match="no message"):
        next(received)


def test_a_large_frame_costs_no_more_than_its_bytes_when_it_trickles_in() -> None:
    message = LoadFailed("x" * 1_000_000)
    decoder, frame = FrameDecoder(), encode(message)
    received = [found for start in range(0, len(frame), 4096) for found in decoder.feed(frame[start : start + 4096])]
    assert received == [message]
    assert not decoder._rest
