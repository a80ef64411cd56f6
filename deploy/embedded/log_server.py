"""The embedded log: a Kafka broker for one machine, in one process, on loopback.

It speaks the part of Kafka's protocol that Headrace uses, so that a laptop runs what production runs, with the same
client library on every path. It has no replicas, no authentication, no transactions and no consumer groups with
members; tests hold it to Apache Kafka by running the same client scripts against both.

`python -P -m deploy.embedded.log_server --data DIR --port 9092` prints `listening on 127.0.0.1:9092` when it is ready,
and leaves the port in `DIR/port`; port 0 takes a free one.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import resource
import sys
from pathlib import Path
from typing import cast

from contracts.clock import SystemClock
from contracts.errors import ConfigurationError
from contracts.service import Deadline, Loops, main, run_until_signal
from deploy.embedded.log_faults import SOCKET_NAME, Faults, socket_path
from deploy.embedded.log_fetch import Fetch, Noticed
from deploy.embedded.log_handlers import Handlers
from deploy.embedded.log_store import Store
from deploy.embedded.log_wire import Api, ProtocolError, read_request, write_produced

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 100 << 20  # Kafka's own limit
RETENTION_INTERVAL_SECONDS = 5.0
_SIZE_BYTES = 4


class Connection(asyncio.Protocol):
    """One client. Its requests are answered in order, one at a time: while a fetch waits, what follows it waits too."""

    _transport: asyncio.Transport

    def __init__(self, server: LogServer) -> None:
        self._server = server
        self._received = bytearray()
        self._fetch: Fetch | None = None
        self._later: asyncio.Handle | None = None
        self._is_busy = False  # a request is not answered yet
        self._is_serving = False  # the loop of _serve is running, and goes on by itself

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._is_busy = True  # for good: nothing that came before gets an answer
        if self._fetch is not None:
            self._fetch.cancel()
        if self._later is not None:
            self._later.cancel()

    def close(self) -> None:
        """End the connection without another word."""
        self._transport.abort()

    def pause_writing(self) -> None:
        """A client that does not take its answers is not read either, which bounds what is held for it."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._is_busy:
            self._serve()
        if len(self._received) > MAX_REQUEST_BYTES:
            log.warning("connection closed: more than %d bytes wait to be answered", MAX_REQUEST_BYTES)
            self.close()

    def _serve(self) -> None:
        received, start = self._received, 0
        self._is_serving = True
        try:
            while not self._is_busy and (frame := _frame_at(received, start)) is not None:
                start += _SIZE_BYTES + len(frame)
                self._take(frame)
        except ProtocolError as error:
            log.warning("connection closed: %s", error)
            self.close()
        except Exception:
            log.exception("connection closed by an unexpected error")
            self.close()
        del received[:start]
        self._is_serving = False

    def _take(self, frame: bytes) -> None:
        request, server = read_request(frame), self._server
        self._is_busy = True
        if request.api is Api.FETCH:
            self._fetch = Fetch(request, server.store, server.faults, server.noticed, self._answer)
            self._fetch.begin()
        elif request.api is Api.PRODUCE:
            try:
                topics, seconds = server.handlers.produce(request), server.faults.settle()
            finally:
                server.noticed.look_again()  # who waits for a record comes before its producer
            self._send_after(seconds, b"" if topics is None else write_produced(request, topics))
        else:
            response, seconds = server.handlers.handle(request), server.faults.settle()
            server.noticed.look_again()
            self._send_after(seconds, response)

    def _answer(self, response: bytes) -> None:
        self._fetch = None
        self._send_after(self._server.faults.settle(), response)

    def _send_after(self, seconds: float | None, response: bytes) -> None:
        """Send an answer, late or never where a fault wants it so."""
        if seconds is None:
            self.close()
        elif seconds > 0:
            self._later = asyncio.get_running_loop().call_later(seconds, self._send, response)
        else:
            self._send(response)

    def _send(self, response: bytes) -> None:
        if response:
            self._transport.write(response)
        self._is_busy = False
        if not self._is_serving:
            self._serve()


def _frame_at(received: bytearray, start: int) -> bytes | None:
    begin = start + _SIZE_BYTES
    size = int.from_bytes(received[start:begin], signed=True)
    if not 0 <= size <= MAX_REQUEST_BYTES:
        raise ProtocolError(f"a request of {size} bytes")
    if len(received) < begin + size or len(received) < begin:
        return None
    return bytes(memoryview(received)[begin : begin + size])


class LogServer:
    """The service: a listener, the control door of the faults, and the loop that honours retention."""

    store: Store
    handlers: Handlers

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.faults = Faults()
        self.noticed = Noticed()
        self.connections: set[Connection] = set()
        self._folder, self._host, self._port = folder, host, port
        self._loops = Loops("embedded-log")
        self._servers: list[asyncio.AbstractServer] = []

    async def start(self) -> None:
        """Serve, then say where."""
        if self._host != "localhost" and not ipaddress.ip_address(self._host).is_loopback:
            message = f"--host {self._host}: without authentication the embedded log serves loopback only, as 127.0.0.1"
            raise ConfigurationError(message)
        self.store = Store(self._folder, SystemClock())
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self), self._host, self._port)
        self._servers.append(server)
        self._port = server.sockets[0].getsockname()[1]
        self.handlers = Handlers(self.store, self.faults, self._host, self._port)
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)
        with socket_path(self._folder) as path:
            self._servers.append(await asyncio.start_unix_server(self.faults.serve, path))
        self._loops.spawn("retention_loop", self._retention_loop())
        (self._folder / "port").write_text(f"{self._port}\n", "utf-8")
        sys.stdout.write(f"listening on {self._host}:{self._port}\n")
        sys.stdout.flush()

    async def wait(self) -> None:
        """Return never; raise what ended the loop."""
        await self._loops.wait()

    async def stop(self, deadline: Deadline) -> None:
        """Take nothing new, force everything to the disk."""
        await self._loops.stop()
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for connection in tuple(self.connections):
            connection.close()
        if servers:
            self.store.close()

    async def _retention_loop(self) -> None:
        while True:
            await asyncio.sleep(RETENTION_INTERVAL_SECONDS)
            self.store.enforce_retention()


def run(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -P -m deploy.embedded.log_server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where records and offsets are kept")
    parser.add_argument("--port", type=int, default=9092, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (default: %(default)s)")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # each segment is an open file
    main(lambda: run_until_signal(LogServer(options.data, options.host, options.port)))


if __name__ == "__main__":
    run()
