"""Frames cut out of what a connection receives, however the network cuts it."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason
from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.kafka import wire
from contracts.adapters.kafka.framing import hear_at_once
from contracts.adapters.kafka.wire import Exchange


class Transport:
    """Knows its protocol, as event loops' transports do."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        self.transport = self

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def receive(self, data: bytes) -> None:
        cast("asyncio.Protocol", self.protocol).data_received(data)


class Connection:
    """As much of the library's connection as is used."""

    host, port = "broker", 9092

    def __init__(self) -> None:
        self._protocol = asyncio.Protocol()
        self._writer = Transport(self._protocol)
        self._loop = SimpleNamespace(call_soon=lambda call, *arguments: self.later.append((call, arguments)))
        self._requests: deque[object] = deque()
        self.later: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self.frames: list[bytes] = []
        self.is_open = True

    def connected(self) -> bool:
        return self.is_open

    def close(self, reason: object, exc: Exception) -> None:
        assert reason is CloseReason.CONNECTION_BROKEN
        assert isinstance(exc, (IndexError, ValueError, struct.error))
        self.is_open = False

    def _handle_frame(self, frame: bytes) -> None:
        if frame == b"unasked":
            raise IndexError("nothing was asked")
        self.frames.append(frame)

    @property
    def wire(self) -> Transport:
        return self._writer


class Client:
    """Has one connection."""

    def __init__(self, connection: Connection) -> None:
        self._conns = {(0, ConnectionGroup.DEFAULT): connection}


def heard(connection: Connection) -> Connection:
    for node in (0, 0, 1):  # twice is once, and a broker that is not connected is none
        hear_at_once(cast("AIOKafkaClient", Client(connection)), node)
    return connection


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=8))
def test_frames_are_the_same_however_they_arrive(frames: list[bytes], cuts: list[int]) -> None:
    connection, data = heard(Connection()), framed(*frames)
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for first, end in itertools.pairwise(at):
        connection.wire.receive(data[first:end])
    assert connection.frames == frames


def test_nothing_is_taken_over_while_an_answer_is_awaited() -> None:
    connection = Connection()
    connection._requests.append("asked")
    library = connection.wire.protocol
    assert heard(connection).wire.protocol is library


def test_an_answer_that_cannot_be_read_ends_the_connection_and_what_follows_is_not_read() -> None:
    connection = heard(Connection())
    connection.wire.receive(framed(b"asked", b"unasked", b"more"))
    assert connection.frames == [b"asked"]
    assert not connection.is_open


@pytest.mark.parametrize("length", [-1, -4, -(2**31)])
def test_a_length_below_zero_ends_the_connection(length: int) -> None:
    connection = heard(Connection())
    connection.wire.receive(framed(b"asked") + length.to_bytes(4, "big", signed=True) + framed(b"more"))
    assert connection.frames == [b"asked"]
    assert not connection.is_open


def asked(connection: Connection, number: int, request: Exchange) -> asyncio.Future[bytes]:
    future = asyncio.Future[bytes](loop=asyncio.new_event_loop())
    future.get_loop().close()
    connection._requests.append((number, request, future))
    return future


def test_an_answer_to_one_of_ours_is_read_here_and_all_else_by_the_library() -> None:
    connection, ours = heard(Connection()), Exchange(0, 3, b"", lambda data, at: data[at:])
    first, second = asked(connection, 1, ours), asked(connection, 2, ours)
    connection.wire.receive(framed(b"\0\0\0\1first"))
    assert first.result() == b"first"
    connection.wire.receive(framed(b"\0\0\0\7second"))  # the number of none that waits
    second.cancel()
    connection.wire.receive(framed(b"\0\0\0\2second"))
    assert connection.frames == [b"\0\0\0\7second", b"\0\0\0\2second"]


def test_what_an_answer_leads_to_goes_before_who_waits_for_its_end() -> None:
    connection, known = heard(Connection()), list[bytes]()
    future = asked(connection, 1, Exchange(1, 4, b"", lambda data, at: data[at:], known.append))
    connection.wire.receive(framed(b"\0\0\0\1answer"))
    assert known == [b"answer"]
    assert not connection._requests
    for _ in range(3):
        assert not future.done()
        ((call, arguments),) = connection.later
        connection.later.clear()
        call(*arguments)
    assert future.result() == b"answer"


def test_an_answer_of_ours_that_makes_no_sense_ends_the_connection() -> None:
    connection = heard(Connection())
    future = asked(connection, 1, Exchange(0, 3, b"", wire.ProduceAnswer.read))
    connection.wire.receive(framed(b"\0\0\0\1short"))
    assert not connection.is_open
    assert not future.done()  # the library's connection tells who waits
