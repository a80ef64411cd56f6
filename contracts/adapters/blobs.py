"""Payloads by content, in any store that fsspec knows: the only door to it.

    <root>/<tenant>/<first two digits>/<sha256 of the content>

An object is written before the record that refers to it, and read back with its size and digest checked, so that what
is in the store can be missing or broken but never wrong. A path is made of the configured root, a valid tenant name and
64 hexadecimal digits; nothing else that came in a message takes part, so no reference leads out of its tenant's folder.
Equal contents are one object: writing it again only makes it young, and nobody deletes but the sweep, by age.

fsspec blocks, so it runs in a few threads; how many bytes are under way is bounded, and what takes too long has failed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from contracts.clock import Clock, SystemClock
from contracts.errors import ConfigurationError, PayloadLost, TransportError
from contracts.names import DEFAULT_TENANT, check_name, is_name
from contracts.payloads import URL_VARIABLE, to_be_stored
from contracts.settings import BlobSettings
from contracts.tensors import Ref, Tensor

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"([^/]+)/([0-9a-f]{2})/(\2[0-9a-f]{62})(\.[0-9a-f]{16})?")  # the last part while it is written

_T = TypeVar("_T")


class Swept(NamedTuple):
    """What a sweep found: objects that were too old, their bytes, and how many stay."""

    objects: int
    bytes: int
    kept: int


class ByteBudget:
    """So many bytes at a time, first come, first served; what is larger than all of it goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.taken = 0

    async def take(self, size: int) -> None:
        """Wait for room."""
        if not self._waiting and self._fits(size):
            self.taken += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            self._admit()
            raise

    def give(self, size: int) -> None:
        """Make room."""
        self.taken -= size
        self._admit()

    def _fits(self, size: int) -> bool:
        return not self.taken or self.taken + size <= self._limit

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size):
                    return
                self.taken += size
                turn.set_result(None)
            self._waiting.popleft()


class Blobs:
    """One store. May be made anywhere; everything but `close` belongs to one event loop."""

    def __init__(self, settings: BlobSettings, clock: Clock | None = None) -> None:
        """Raises ConfigurationError for a URL that is none."""
        if "://" not in settings.url:
            msg = f"{URL_VARIABLE} must be a URL such as file:///srv/headrace or s3://bucket/headrace"
            raise ConfigurationError(msg)
        self._settings = settings
        self._clock = clock or SystemClock()
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="headrace-blobs")
        self._budget = ByteBudget(settings.in_flight_bytes)
        self._store: tuple[Any, str] | None = None

    @classmethod
    def from_settings(cls, settings: BlobSettings) -> Blobs | None:
        """The store that is configured, if any."""
        return cls(settings) if settings.url else None

    def close(self) -> None:
        """Begin nothing more; idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- bytes --------------------------------------------------------------------------------------------------------

    async def put(self, data: bytes | memoryview, *, tenant: str = DEFAULT_TENANT) -> Ref:
        """Store bytes; when this returns they can be read. Raises TransportError."""
        return await self._work(len(data), self._put, data, check_name(tenant, "tenant"))

    async def get(self, ref: Ref, *, tenant: str = DEFAULT_TENANT) -> bytes:
        """The bytes that were stored. Raises PayloadLost when they are not there or not those, TransportError."""
        if _DIGEST.fullmatch(ref.digest) is None or ref.size < 0 or not is_name(tenant):
            msg = "a reference must be a sha256 in lower-case hexadecimal and a size"
            raise PayloadLost(msg)
        return await self._work(ref.size, self._get, ref, tenant)

    # --- tensors ------------------------------------------------------------------------------------------------------

    async def store(
        self, tensors: Sequence[Tensor], *, each: int, total: int, tenant: str = DEFAULT_TENANT
    ) -> tuple[Tensor, ...]:
        """The same tensors, those that are too large as references; see `to_be_stored`. Raises TransportError."""
        chosen = sorted(to_be_stored([tensor.size for tensor in tensors], each=each, total=total))
        refs = await asyncio.gather(*(self.put(tensors[index].data, tenant=tenant) for index in chosen))
        small = list(tensors)
        for index, ref in zip(chosen, refs, strict=True):
            small[index] = Tensor(tensors[index].name, tensors[index].datatype, tensors[index].shape, ref=ref)
        return tuple(small)

    async def restore(self, tensors: Sequence[Tensor], *, tenant: str = DEFAULT_TENANT) -> tuple[Tensor, ...]:
        """The same tensors with their data. Raises PayloadLost and TransportError, which name the tensor."""
        return tuple(await asyncio.gather(*(self._restored(tensor, tenant) for tensor in tensors)))

    async def _restored(self, tensor: Tensor, tenant: str) -> Tensor:
        if tensor.ref is None:
            return tensor
        try:
            data = await self.get(tensor.ref, tenant=tenant)
        except (PayloadLost, TransportError) as exc:
            msg = f"tensor {tensor.name!r} ({tensor.ref.size:,} bytes in the store): {exc}"
            raise type(exc)(msg) from exc
        return msgspec.structs.replace(tensor, data=memoryview(data), ref=None)

    # --- the sweep ----------------------------------------------------------------------------------------------------

    async def sweep(self, older_than_seconds: float | None = None, *, dry_run: bool = False) -> Swept:
        """Delete objects that are too old; files that are not ours are left alone. Raises TransportError."""
        age = self._settings.keep_seconds if older_than_seconds is None else older_than_seconds
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._translated, "sweeping", self._sweep, age, dry_run)

    # --- in threads ---------------------------------------------------------------------------------------------------

    async def _work(self, size: int, function: Callable[..., _T], *args: object) -> _T:
        await self._budget.take(size)
        what = "writing a payload" if function == self._put else "reading a payload"
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, self._translated, what, function, *args)
        except RuntimeError as exc:  # it was closed
            self._budget.give(size)
            raise TransportError("the store of payloads was closed") from exc
        running.add_done_callback(lambda _: self._done(running, size))
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await asyncio.shield(running)
        except TimeoutError as exc:
            msg = f"{what} took longer than {self._settings.timeout_seconds:g} s"
            raise TransportError(msg) from exc

    def _done(self, running: asyncio.Future[Any], size: int) -> None:
        self._budget.give(size)  # not sooner: a thread that hangs still holds its bytes
        if not running.cancelled():
            running.exception()  # whoever wanted it may have left

    def _translated(self, what: str, function: Callable[..., _T], *args: object) -> _T:
        try:
            return function(*args)
        except (PayloadLost, ConfigurationError):
            raise
        except Exception as exc:  # each store has errors of its own
            msg = f"{what} failed: {type(exc).__name__}: {exc}"
            raise TransportError(msg[:500]) from exc

    def _open(self) -> tuple[Any, str]:
        """The file system and the path of the root; connects the first time."""
        if self._store is None:  # two threads may both do it, to the same end
            import fsspec

            try:
                system, root = fsspec.core.url_to_fs(self._settings.url, use_listings_cache=False)
            except (ImportError, ValueError) as exc:
                msg = f"{URL_VARIABLE} cannot be used: {exc}"
                raise ConfigurationError(msg) from exc
            if _is_local(system):
                system.auto_mkdir = True
            self._store = system, str(root).rstrip("/")
        return self._store

    def _put(self, data: bytes | memoryview, tenant: str) -> Ref:
        system, root = self._open()
        ref = Ref(hashlib.sha256(data).hexdigest(), len(data))
        path = _path(root, tenant, ref.digest)
        if _is_local(system):  # a file becomes visible when it is whole, and replaces an older one at once
            draft = f"{path}.{secrets.token_hex(8)}"
            system.pipe_file(draft, data)
            system.mv(draft, path)
        else:
            system.pipe_file(path, data if isinstance(data, bytes) else bytes(data))
        return ref

    def _get(self, ref: Ref, tenant: str) -> bytes:
        system, root = self._open()
        path = _path(root, tenant, ref.digest)
        try:
            size = int(system.info(path)["size"])
            data: bytes = system.cat_file(path) if size == ref.size else b""
        except FileNotFoundError as exc:
            raise PayloadLost("it is not in the store: it was swept away, or never written there") from exc
        if size != ref.size or len(data) != size or hashlib.sha256(data).hexdigest() != ref.digest:
            raise PayloadLost("what is in the store has another size or another content")
        return data

    def _sweep(self, age_seconds: float, dry_run: bool) -> Swept:  # noqa: FBT001 - run in a thread by position
        system, root = self._open()
        limit = self._clock.unix_ms() / 1000 - age_seconds
        objects = size = kept = 0
        for path, info in system.find(root, detail=True).items():
            if _OURS.fullmatch(path.removeprefix(root).lstrip("/")) is None:
                continue
            # Looked at once more: somebody may have written it again since it was listed.
            if _modified(system, path, info) > limit or _modified(system, path, None) > limit:
                kept += 1
                continue
            objects, size = objects + 1, size + int(info["size"])
            if not dry_run:
                system.rm_file(path)
        return Swept(objects, size, kept)


def _is_local(system: Any) -> bool:
    return "file" in (system.protocol if isinstance(system.protocol, tuple | list) else (system.protocol,))


def _path(root: str, tenant: str, digest: str) -> str:
    return f"{root}/{tenant}/{digest[:2]}/{digest}"


def _modified(system: Any, path: str, info: Mapping[str, Any] | None) -> float:
    """When an object was written, in Unix seconds: as the listing says, or else asked for."""
    known = None if info is None else info.get("mtime", info.get("LastModified"))
    if known is None:
        try:
            known = system.modified(path)
        except FileNotFoundError:
            return float("inf")  # somebody else's sweep was here
    if isinstance(known, datetime):
        return (known if known.tzinfo else known.replace(tzinfo=UTC)).timestamp()
    return float(known)
