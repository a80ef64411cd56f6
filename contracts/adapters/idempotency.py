"""Idempotency keys: which request stands for a key, who carries it out, and what came of it.

One record per key. Its submitter keeps a mark in it alive; when the mark lapses, the next one who asks takes the same
request id over. The response replaces the mark: one that is `done` answers the key until the record expires, one that
is `over` (a failure that may go better next time) answers only those who waited for it. Redis' clock counts.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from msgspec import Struct

from contracts import keys
from contracts.adapters.redis import Argument, RedisDoor, refusal_of, script
from contracts.codec import decode_kept, encode_kept
from contracts.errors import TransportError
from contracts.messages import Response

Standing = Literal["RUN", "WAIT", "DONE", "OVER", "CONFLICT"]
_STANDINGS = frozenset(get_args(Standing))


class KeyedRequest(Struct, frozen=True):
    """What a caller sends under a key: `body` is the hash of all that must be equal in a repetition."""

    key: str
    body: str
    request_id: str


class Claim(Struct, frozen=True):
    """Where a key's request stands: carry it out yourself (RUN), wait, or take the response, if it was kept."""

    standing: Standing
    request_id: str
    lapses_seconds: float = 0.0
    """Until the submitter's mark lapses, unless it is renewed."""
    response: Response | None = None


class Idempotency:
    """The records of one tenant's keys."""

    def __init__(self, redis: RedisDoor, tenant: str, *, holder: str, mark_ms: int, keep_ms: int) -> None:
        """`holder` names the client: what it began it may begin again. `keep_ms` is how long a key is remembered."""
        self._redis = redis
        self._tenant = tenant
        self._holder = holder
        self._mark_ms = mark_ms
        self._keep_ms = keep_ms

    async def begin(self, request: KeyedRequest, waited_for: str = "") -> Claim:
        """Ask to carry a request out. `waited_for` is the id of an earlier WAIT, or empty. Raises TransportError."""
        args: list[Argument] = [request.request_id, request.body, self._holder, self._mark_ms, self._keep_ms]
        reply = await self._redis.call_raw(script("idem_begin"), [self._record(request)], [*args, waited_for])
        standing, request_id = reply[0].decode(), reply[1].decode()
        if standing not in _STANDINGS:
            message = f"unknown answer {standing!r} from idem_begin"
            raise TransportError(message)
        lapses = int(reply[2]) / 1000 if standing == "WAIT" else 0.0
        response = decode_kept(reply[2]) if standing in ("DONE", "OVER") and reply[2] else None
        return Claim(cast("Standing", standing), request_id, lapses, response)

    async def renew(self, request: KeyedRequest) -> bool:
        """Keep the mark alive; False when the request is somebody else's now. Raises TransportError."""
        return await self._mark(request, self._mark_ms)

    async def give_up(self, request: KeyedRequest) -> bool:
        """Let the mark lapse at once, so that who waits need not wait for it. Raises TransportError."""
        return await self._mark(request, 0)

    async def finish(self, request: KeyedRequest, response: Response | None, *, is_kept: bool) -> bool:
        """Store how it ended; False when another response was first. None stands for one that is too large to keep.

        With `is_kept` the response answers the key from now on, else only whoever waits for it. Raises TransportError.
        """
        content = b"" if response is None else encode_kept(response)
        state = "done" if is_kept else "over"
        args: list[Argument] = [request.request_id, request.body, self._holder, state, content, self._keep_ms]
        return refusal_of(await self._redis.call(script("idem_finish"), [self._record(request)], args)) is None

    async def _mark(self, request: KeyedRequest, mark_ms: int) -> bool:
        args: list[Argument] = [request.request_id, request.body, self._holder, mark_ms, self._keep_ms]
        return refusal_of(await self._redis.call(script("idem_renew"), [self._record(request)], args)) is None

    def _record(self, request: KeyedRequest) -> str:
        return keys.idempotency(self._redis.prefix, self._tenant, request.key)
