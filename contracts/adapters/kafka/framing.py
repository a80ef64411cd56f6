"""Answers handed on as they arrive, in place of the task with which the library reads each of its connections.

That task waits for four bytes, then for as many as they say: each wait is a future and a turn of the event loop, on
the way of every request and of every answer to it. Here a frame is taken apart where the event loop delivers it, and
an answer to a request of our own is read from it there. All others are the library's, and so are the connection's
numbers, the order of its answers and its end.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from typing import Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason

from contracts.adapters.kafka.wire import Exchange

log = logging.getLogger(__name__)

_LENGTH: Final = struct.Struct(">i")
_NUMBERS: Final = 2**31
_HEAD: Final = struct.Struct(">ii")  # length, correlation id


class _Frames(asyncio.Protocol):
    """Cuts what a connection receives into frames. All but the data goes to the library's own protocol, as before."""

    # ruff: noqa: SLF001 - the library has no surface here

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._library: asyncio.Protocol = connection._protocol
        self._rest = bytearray()

    def data_received(self, data: bytes) -> None:
        if self._rest or len(data) < _LENGTH.size or _LENGTH.unpack_from(data)[0] != len(data) - _LENGTH.size:
            self._gather(data)
        else:  # one whole frame, as nearly always
            self._hand_on(data)

    def _gather(self, data: bytes) -> None:
        rest = self._rest
        rest += data
        while len(rest) >= _LENGTH.size and self._connection.connected():
            (length,) = _LENGTH.unpack_from(rest)
            if length < 0:  # it would lead backwards, for ever
                self._give_up(ValueError(f"a frame of {length} bytes"))
                return
            end = _LENGTH.size + length
            if len(rest) < end:
                return
            frame = bytes(memoryview(rest)[:end])
            del rest[:end]
            self._hand_on(frame)

    def _hand_on(self, frame: bytes) -> None:
        """Answer the oldest request. What is none of ours, or no answer to it, is the library's affair."""
        connection = self._connection
        asked = connection._requests
        try:
            if asked:  # so it is not closed
                number, request, future = asked[0]
                if type(request) is Exchange and _HEAD.unpack_from(frame)[1] == number and not future.done():
                    answer = request.read(frame, _HEAD.size)
                    if request.hear is None:
                        future.set_result(answer)
                    else:  # what that leads to goes first, in this turn of the loop and the next two
                        request.hear(answer)
                        soon = connection._loop.call_soon
                        soon(soon, soon, _settle, future, answer)
                    asked.popleft()
                    connection._last_action = time.monotonic()
                    return
            if connection.connected():  # or what came before has closed it
                connection._handle_frame(frame[_LENGTH.size :])
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with it, nothing behind it can be trusted
            self._give_up(exc)

    def _give_up(self, exc: Exception) -> None:
        connection = self._connection
        log.warning("an answer of the broker at %s:%s cannot be read: %r", connection.host, connection.port, exc)
        connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=exc)

    def eof_received(self) -> bool | None:
        return self._library.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._library.connection_lost(exc)

    def pause_writing(self) -> None:
        self._library.pause_writing()

    def resume_writing(self) -> None:
        self._library.resume_writing()


def _settle(future: asyncio.Future[Any], answer: object) -> None:
    if not future.done():
        future.set_result(answer)


def hear_at_once(client: AIOKafkaClient, node: int) -> Any:
    """Read the connection to a broker without the library's task from now on; return it if it is read so.

    It takes effect between requests only: then nothing is half read.
    """
    connection = client._conns.get((node, ConnectionGroup.DEFAULT))
    if connection is None or not connection.connected():
        return None
    transport = connection._writer.transport
    if transport.get_protocol() is connection._protocol:
        if connection._requests:
            return None
        transport.set_protocol(_Frames(connection))
    return connection


def ask(connection: Any, request: Exchange) -> asyncio.Future[Any]:
    """Write a request to a connection; the future becomes its answer. Raises KafkaError.

    There is no limit to how long that takes: whoever waits has one.
    """
    request.prepare(connection._versions)
    connection._correlation_id = number = (connection._correlation_id + 1) % _NUMBERS
    try:
        connection._writer.write(request.frame(number, connection._client_id))
    except OSError as exc:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise kafka_errors.KafkaConnectionError(f"{connection.host}:{connection.port}: {exc}") from exc
    future: asyncio.Future[Any] = connection._loop.create_future()
    connection._requests.append((number, request, future))
    return future
