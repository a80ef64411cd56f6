"""Answers handed on as they arrive, in place of the task with which the library reads each of its connections.

That task waits for four bytes, then for as many as they say: each wait is a future and a turn of the event loop, on
the way of every request and of every answer to it. Here a frame is taken apart where the event loop delivers it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason

log = logging.getLogger(__name__)

_LENGTH: Final = struct.Struct(">i")


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
            self._hand_on(data[_LENGTH.size :])

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
            frame = bytes(memoryview(rest)[_LENGTH.size : end])
            del rest[:end]
            self._hand_on(frame)

    def _hand_on(self, frame: bytes) -> None:
        connection = self._connection
        if not connection.connected():
            return  # closed by what came before
        try:
            connection._handle_frame(frame)
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


def hear_at_once(client: AIOKafkaClient, node: int) -> None:
    """Read the connection to a broker without the library's task from now on, if there is one; idempotent.

    It takes effect between requests only: then nothing is half read.
    """
    connection = client._conns.get((node, ConnectionGroup.DEFAULT))
    if connection is None or connection._requests or not connection.connected():
        return
    transport = connection._writer.transport
    if transport.get_protocol() is connection._protocol:
        transport.set_protocol(_Frames(connection))
