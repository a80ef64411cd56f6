"""Ingest's side of the link to its engine: a unix socket on which one engine at a time is heard.

The engine connects, proves that it holds this lease's token, gets `Load` and answers `Ready`. When its connection ends
it is gone; the node agent starts another, which connects anew. Messages are handed to the handler as they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from pathlib import Path
from typing import Protocol, cast

from workers.ingest import metrics
from workers.ingest.engine_process import EngineProcess, peer_pid
from workers.link import (
    Batch,
    Continue,
    Done,
    Failed,
    Forget,
    FrameDecoder,
    Hello,
    Load,
    LoadFailed,
    Message,
    Part,
    Ready,
    Stop,
    encode,
    untimed,
)

log = logging.getLogger(__name__)


class EngineHandler(Protocol):
    """Who is told what the engine says."""

    def engine_ready(self, ready: Ready) -> None:
        """All models are loaded and warm."""

    def engine_done(self, done: Done) -> None:
        """A batch's outputs are in its slot."""

    def engine_part(self, part: Part) -> None:
        """A streaming model yielded, and waits for Continue."""

    def engine_failed(self, failed: Failed) -> None:
        """A batch has no outputs."""

    def engine_lost(self) -> None:
        """A ready engine's connection has ended, and with it every batch in it."""

    def engine_cannot_load(self, message: str) -> None:
        """The models cannot be loaded; trying again will not help."""


class _Connection(asyncio.Protocol):
    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._frames = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._is_trusted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class; a stream server gives no other

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._hear(message)
        except ValueError as exc:  # msgspec's DecodeError is one
            log.error("the engine link carried rubbish: %s", exc)  # noqa: TRY400 - a stack says nothing here
            self.close()

    def _hear(self, message: Message) -> None:
        if self._is_trusted:
            self._link.hear(self, message)
        elif isinstance(message, Hello) and hmac.compare_digest(message.token, self._link.token):
            self._is_trusted = True
            self._link.adopt(self, self._process_of(message))
        else:
            log.error("a stranger connected to the engine link")
            self.close()

    def _process_of(self, hello: Hello) -> EngineProcess:
        connected = None if self._transport is None else self._transport.get_extra_info("socket")
        return EngineProcess((peer_pid(connected) if connected is not None else None) or hello.pid)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._is_trusted:
            self._link.lost(self)

    def send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class EngineLink:
    """Listens for the engine of one lease."""

    def __init__(self, path: Path, token: str, load: Load, handler: EngineHandler) -> None:
        self.token = token
        self._path = path
        self._load = load
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._current: _Connection | None = None
        self._process: EngineProcess | None = None
        self._is_warm = self._is_retiring = False

    @property
    def is_ready(self) -> bool:
        """Whether an engine is connected and warm, and takes batches."""
        return self._is_warm and not self._is_retiring

    async def start(self) -> None:
        """Listen."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), path=str(self._path))
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Tell the engine to exit and listen no more; idempotent."""
        server, self._server = self._server, None
        connection, self._current = self._current, None
        self._is_warm = False
        self._forget_process()
        if connection is not None:
            connection.send(Stop())
            connection.close()
        if server is not None:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def send(self, message: Batch | Continue | Forget) -> None:
        """Give the engine something to do; nothing is sent while none is connected."""
        if self._current is not None:
            self._current.send(message)

    def kill(self) -> None:
        """End the engine at once; what it holds is lost, and `engine_lost` follows."""
        if self._process is not None:
            self._process.kill()

    def retire(self) -> None:
        """Let the engine finish the batches that it has, and end; it gets no further ones."""
        if self._current is not None and not self._is_retiring:
            self._is_retiring = True
            self._current.send(Stop())

    @property
    def memory_mib(self) -> float:
        """Resident memory of the engine, 0 while there is none."""
        return 0.0 if self._process is None else self._process.memory_mib()

    def adopt(self, connection: _Connection, process: EngineProcess) -> None:
        """A new engine has shown the token; an earlier one, if still connected, is dropped."""
        previous, self._current = self._current, connection
        if previous is not None:
            previous.close()
            self._end_of_engine()
        self._process = process
        connection.send(self._load)

    def _leave_word(self) -> None:
        """Let the node agent know that this engine got ready: should it die, the next one may come at once."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._path.with_suffix(".served").write_text(str(self._process.pid), encoding="ascii")

    def _forget_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def lost(self, connection: _Connection) -> None:
        """A connection ended."""
        if connection is self._current:
            self._current = None
            self._end_of_engine()

    def _end_of_engine(self) -> None:
        was_warm, self._is_warm, self._is_retiring = self._is_warm, False, False
        self._forget_process()
        if was_warm:
            self._handler.engine_lost()

    def hear(self, connection: _Connection, message: Message) -> None:
        """Pass on what the current engine says."""
        if connection is not self._current:
            return
        if isinstance(message, Done):
            self._handler.engine_done(message)
        elif isinstance(message, Part):
            self._handler.engine_part(message)
        elif isinstance(message, Failed):
            self._handler.engine_failed(message)
        elif isinstance(message, Ready):
            self._is_warm = True
            for model, (captured, failed) in zip(self._load.models, message.graphs, strict=False):
                metrics.ENGINE_GRAPHS.labels(model.key, "captured").set(captured)
                metrics.ENGINE_GRAPHS.labels(model.key, "failed").set(failed)
            self._load = untimed(self._load)
            self._leave_word()
            self._handler.engine_ready(message)
        elif isinstance(message, LoadFailed):
            self._handler.engine_cannot_load(message.message)
