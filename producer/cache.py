"""Responses kept for those who ask the same again: by content, for a time, the least recently used leave first. Pure.

Only results are kept. A response counts with its outputs' bytes and a flat sum for everything around them; one that
does not fit at all is not kept. Times are handed in.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from contracts.messages import Response, Status

_ENTRY_BYTES = 1024  # objects around the bytes, roughly: a million tiny responses must not count as nothing


class _Entry(NamedTuple):
    response: Response
    size: int
    expires: float


class ResponseCache:
    """OK responses by the digest of their request."""

    def __init__(self, *, ttl_seconds: float, max_bytes: int) -> None:
        self._ttl_seconds = ttl_seconds
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What the kept responses count together."""
        return self._bytes

    def get(self, digest: str, now: float) -> Response | None:
        """The response to an equal request, marked as cached; None when there is none that is fresh enough."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry.expires <= now:
            self._drop(digest)
            return None
        self._entries.move_to_end(digest)
        return entry.response

    def put(self, digest: str, response: Response, now: float) -> None:
        """Keep a response if it is a result and there is room for it."""
        size = _ENTRY_BYTES + sum(len(tensor.data) for tensor in response.outputs)
        if response.status is not Status.OK or self._ttl_seconds <= 0 or size > self._max_bytes:
            return
        if digest in self._entries:
            self._drop(digest)
        self._entries[digest] = _Entry(as_cached(response), size, now + self._ttl_seconds)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, digest: str) -> None:
        self._bytes -= self._entries.pop(digest).size


def as_cached(response: Response) -> Response:
    """The same response for a caller on whose behalf the model did not run."""
    return msgspec.structs.replace(response, cached=True)
