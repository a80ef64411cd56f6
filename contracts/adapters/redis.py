"""The only door to redis-py.

Every operation on shared state is one Lua script: it runs alone on the server, reads the server's clock, and answers a
business refusal with a code. Scripts are idempotent, but a client that retries by itself would hide how long a call
took, and a lease is only as good as that knowledge: so there are no client retries, and a call that is not answered in
a second fails with TransportError. The caller decides whether to call again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple, Self, TypeVar, cast, get_args

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from contracts.errors import ConfigurationError, TransportError
from contracts.pool import Code, Refusal
from contracts.settings import RedisSettings

_T = TypeVar("_T")
_USES = re.compile(r"^-- uses: (.+)$", re.MULTILINE)
_CODES = frozenset(get_args(Code))
Argument = str | int | bytes
DEFAULT_TIMEOUT_SECONDS = 1.0  # a renewal without an answer can be sent again long before its lease is in doubt
_MAX_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua operation with the shared parts that its header names."""

    name: str
    source: str
    sha: str


class StreamEntry(NamedTuple):
    """One entry of a stream."""

    id: str
    fields: dict[str, str]


@cache
def script(name: str) -> Script:
    """Load an operation from the package's Lua files."""
    folder = resources.files("contracts.adapters") / "lua"
    body = (folder / f"{name}.lua").read_text(encoding="utf-8")
    found = _USES.search(body)
    used = [] if found is None or found[1].startswith("(") else found[1].split(", ")
    parts = [(folder / f"_{part}.lua").read_text(encoding="utf-8") for part in used]
    source = "\n".join([*parts, body])
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def script_names() -> list[str]:
    """All operations, without the shared parts."""
    folder = resources.files("contracts.adapters") / "lua"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".lua") for name in names if name.endswith(".lua") and not name.startswith("_"))


class Channel:
    """A connection for writes that nobody waits for: the server is told not to answer on it.

    A write costs what copying it into a socket costs. What was written arrives, in order, unless the connection breaks
    (`is_lost`) or the server stands still for so long that `MAX_UNSENT` bytes wait; then writes are dropped.
    """

    MAX_UNSENT = 1024 * 1024

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self.dropped = 0
        """Writes that were not sent."""

    @property
    def is_lost(self) -> bool:
        """Whether another one has to be opened."""
        reader, writer = self._connection._reader, self._connection._writer  # noqa: SLF001 - it has no such question
        return reader is None or writer is None or reader.at_eof() or writer.is_closing()

    def write(self, *args: str) -> None:
        """Send a command."""
        writer = self._connection._writer  # noqa: SLF001 - its own sending waits
        if writer is None or writer.is_closing() or writer.transport.get_write_buffer_size() > self.MAX_UNSENT:
            self.dropped += 1
            return
        parts = [f"*{len(args)}\r\n".encode()]
        for arg in args:
            raw = arg.encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
        writer.write(b"".join(parts))

    async def close(self) -> None:
        """Close the connection when what was written is sent."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._connection.disconnect()


class RedisDoor:
    """A connection to Redis under one key prefix. Safe to share between tasks of one event loop."""

    def __init__(self, url: str, *, prefix: str, timeout_seconds: float) -> None:
        self.prefix = prefix
        self._timeout_seconds = timeout_seconds
        try:
            # Blocking reads wait as long as they are told to; each call has its own connection of the second client.
            self._client = _client(url, timeout_seconds)
            self._blocking = _client(url, timeout_seconds)
        except ValueError:
            message = (
                "the Redis URL cannot be used; write redis://[user:password@]host:port/database, or rediss:// for TLS"
            )
            raise ConfigurationError(message) from None  # the cause may quote a part of the password

    @classmethod
    async def open(
        cls, url: str, *, prefix: str = "headrace", timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> Self:
        """Connect and see that the server answers; raises TransportError."""
        door = cls(url, prefix=prefix, timeout_seconds=timeout_seconds)
        try:
            await door.command("PING")
        except BaseException:
            await door.close()
            raise
        return door

    @classmethod
    async def from_settings(cls, settings: RedisSettings) -> Self:
        """Connect as the settings say; raises TransportError."""
        return await cls.open(settings.url.get_secret_value(), prefix=settings.prefix)

    async def close(self) -> None:
        """Close all connections; idempotent."""
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()
        with contextlib.suppress(RedisError, OSError):
            await self._blocking.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def open_channel(self) -> Channel:
        """A connection of its own for writes that nobody waits for. Raises TransportError."""
        connection = self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        with _translated():
            async with asyncio.timeout(self._timeout_seconds):
                await connection.connect()
                await connection.send_command("CLIENT", "REPLY", "OFF")  # not answered either
        return Channel(connection)

    async def command(self, *args: Argument) -> Any:
        """Run one plain command; texts come back as str."""
        with _translated():
            async with asyncio.timeout(self._timeout_seconds):
                return text(await _execute(self._client, *args))

    async def get_bytes(self, key: str) -> bytes | None:
        """The value of a key as it was set, None when there is none."""
        with _translated():
            async with asyncio.timeout(self._timeout_seconds):
                return cast("bytes | None", await _execute(self._client, "GET", key))

    async def call(self, operation: Script, keys: Sequence[str], args: Sequence[Argument]) -> list[Any]:
        """Run a script that answers with a list."""
        reply = text(await self._evaluate(operation, keys, args))
        if not isinstance(reply, list):
            message = f"{operation.name} answered {reply!r}"
            raise TransportError(message)
        return reply

    async def call_raw(self, operation: Script, keys: Sequence[str], args: Sequence[Argument]) -> list[bytes]:
        """Run a script that answers with a list of strings which need not be text."""
        reply = await self._evaluate(operation, keys, args)
        if not isinstance(reply, list) or not all(isinstance(part, bytes) for part in reply):
            message = f"{operation.name} answered something else than strings"
            raise TransportError(message)
        return reply

    async def call_packed(self, operation: Script, keys: Sequence[str], args: Sequence[Argument], kind: type[_T]) -> _T:
        """Run a script that answers with one msgpack value of type `kind`."""
        reply = await self._evaluate(operation, keys, args)
        try:
            return msgspec.msgpack.decode(cast("bytes", reply), type=kind)
        except msgspec.MsgspecError as exc:
            message = f"{operation.name} answered something unreadable: {exc}"
            raise TransportError(message) from exc

    async def _evaluate(self, operation: Script, keys: Sequence[str], args: Sequence[Argument]) -> object:
        with _translated():
            async with asyncio.timeout(self._timeout_seconds):
                try:
                    return await _execute(self._client, "EVALSHA", operation.sha, len(keys), *keys, *args)
                except NoScriptError:
                    # It did not run, so loading it and running it once is safe.
                    await _execute(self._client, "SCRIPT LOAD", operation.source)
                    return await _execute(self._client, "EVALSHA", operation.sha, len(keys), *keys, *args)

    async def server_unix_ms(self) -> int:
        """The server's clock."""
        seconds, micros = await self.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def last_id(self, stream: str) -> str:
        """The id of a stream's newest entry, to follow from; "0-0" when it is empty."""
        newest = await self.command("XREVRANGE", stream, "+", "-", "COUNT", 1)
        return str(newest[0][0]) if newest else "0-0"

    async def read_range(self, stream: str, first: str) -> list[StreamEntry]:
        """The entries from an id (inclusive) on."""
        return [_entry(raw) for raw in await self.command("XRANGE", stream, first, "+")]

    async def read_stream(self, stream: str, after: str, *, block_ms: int, count: int = 1000) -> list[StreamEntry]:
        """Entries after an id, waiting up to `block_ms` for the first; no wait for 0. Empty when none came."""
        args: list[Argument] = ["XREAD", "COUNT", count]
        client = self._client
        if block_ms > 0:
            args += ["BLOCK", block_ms]
            client = self._blocking
        with _translated():
            async with asyncio.timeout(block_ms / 1000 + self._timeout_seconds):
                reply = text(await _execute(client, *args, "STREAMS", stream, after))
        if not reply:
            return []
        return [_entry(raw) for raw in reply[0][1]]


def refusal_of(reply: Sequence[Any]) -> Refusal | None:
    """The refusal that a script answered with, or None when the first element says OK."""
    if reply[0] == "OK":
        return None
    if reply[0] not in _CODES:
        message = f"unknown answer {reply[0]!r} from a script"
        raise TransportError(message)
    return Refusal(cast("Code", reply[0]), str(reply[1]) if len(reply) > 1 and isinstance(reply[1], str) else "")


def text(value: Any) -> Any:
    """Bytes to str in a reply, however deep."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [text(element) for element in value]
    return value


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """A flat field, value, field, value… list as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _entry(raw: Sequence[Any]) -> StreamEntry:
    return StreamEntry(str(raw[0]), pairs(raw[1]))


def _client(url: str, connect_timeout: float) -> Redis:
    # With a socket timeout the library sends inside asyncio.wait_for, which before Python 3.12 loses a cancellation
    # that comes just when the bytes are written: a cancelled task would go on. So each call has the limit instead.
    connections = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=connect_timeout,
        socket_timeout=None,
        socket_connect_timeout=connect_timeout,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        protocol=2,
    )
    client = Redis.from_pool(connections)
    # Replies as the server sent them, whatever shape this version of the library would give them.
    client.response_callbacks.clear()
    return client


async def _execute(client: Redis, *args: Argument) -> object:
    return cast("object", await client.execute_command(*args))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as exc:
        message = f"Redis failed: {type(exc).__name__}: {str(exc) or 'no answer in time'}"
        raise TransportError(message) from exc
