"""The headers that all requests with one time to live share, and how long to wait for their responses: made once."""

from __future__ import annotations

from collections.abc import Callable

from contracts.codec import encode_headers
from contracts.messages import ReplyAddress, RequestHeaders
from producer.admission import ttl_ms
from producer.settings import BehaviourSettings

_MAX_TAILS = 1024  # callers use few different ttls; this only bounds those that use many

Tail = tuple[list[tuple[str, bytes]], float]


class Tails(dict[float | None, Tail]):
    """By ttl in seconds, None for the default; to be cleared when the reply address has changed."""

    def __init__(self, settings: BehaviourSettings, address: Callable[[], ReplyAddress]) -> None:
        super().__init__()
        self._settings = settings
        self._address = address

    def __missing__(self, ttl_seconds: float | None) -> Tail:
        """Make one. Raises InvalidRequest when there is no such ttl."""
        ttl = self._settings.ttl_seconds if ttl_seconds is None else ttl_seconds
        pairs = encode_headers(RequestHeaders("-", self._address(), ttl_ms(ttl)))
        tail = [pair for pair in pairs if pair[0] != "id"], ttl + self._settings.grace_seconds
        if len(self) >= _MAX_TAILS:
            self.clear()
        self[ttl_seconds] = tail
        return tail
