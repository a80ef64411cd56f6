"""Who waits for which response: id → waiter. Pure: times are handed in, and a waiter's future is only told its result.

Each waiter ends once: by the first terminal response with its id, by its deadline, by giving up, or with everybody
else. What comes later is counted and dropped, as `duplicate` (it was answered), `late` (nobody waits any more),
`unknown` (never asked here, or too long ago to remember) or `foreign`: an error terminal that answers somebody else's
submission of the same id, recognised by its inbox token. A foreign OK counts: the result of a request does not depend
on who asked.

There is no timer per request. `next_due` is never later than the earliest deadline, so a look at one number says
whether anything can have expired, and only then all waiters are walked: with one common ttl, once per ttl.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import msgspec

from contracts.errors import HeadraceError, InvalidRequest, Overloaded
from contracts.messages import ErrorDetail, Receipt, Response, Status
from producer.parts import Parts

_REMEMBERED = 8192  # ended ids kept to tell a duplicate from a stranger; twice as many at most


class Settling(Protocol):
    """The part of a future that is used here."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...
    def exception(self) -> BaseException | None: ...


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A request record, kept until it is answered so that it can be sent again."""

    topic: str
    partition: int
    value: bytes
    headers: list[tuple[str, bytes]]


class Waiter(msgspec.Struct):
    """One request under way. `ack` is the future of its acknowledgement, None until it was handed to the producer."""

    id: str
    future: Settling
    """Becomes a Response, or an error that is no response: the client closed, Kafka failed."""
    started: float
    deadline: float
    model: str
    version: int
    record: Outgoing
    parts: Parts | None = None
    """What arrives before the final response, if the caller takes parts."""
    ack: Any = None
    sends: int = 1
    is_over: bool = False
    """Whether nobody waits any more; a caller who just went away is known by the future alone."""


class ClientStats(msgspec.Struct):
    """What a client has done so far."""

    in_flight: int = 0
    """Requests without a response."""
    requests: int = 0
    """Requests accepted into the window."""
    responses: int = 0
    """Terminal responses that reached their caller."""
    parts: int = 0
    """Parts of streams that arrived before their final response."""
    expired: int = 0
    """Requests answered DEADLINE_EXCEEDED by the client itself."""
    abandoned: int = 0
    """Requests given up by their callers."""
    overloaded: int = 0
    """Requests refused because the window was full."""
    duplicate: int = 0
    """Responses dropped because the request was answered before."""
    late: int = 0
    """Responses dropped because nobody waited any more."""
    unknown: int = 0
    """Responses dropped because this client never asked."""
    foreign: int = 0
    """Error responses dropped because another client's submission of the same id was meant."""
    malformed: int = 0
    """Records in the inbox that are no responses."""
    inbox_moves: int = 0
    """Times that the inbox lease was lost."""
    rebuilds: int = 0
    """Times that the producer was replaced."""


class _Memory:
    """Remembers the last few thousand ids: two sets, the older one forgotten when the newer one is full."""

    __slots__ = ("_limit", "_new", "_old")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._new: set[str] = set()
        self._old: set[str] = set()

    def add(self, request_id: str) -> None:
        self._new.add(request_id)
        if len(self._new) >= self._limit:
            self._old, self._new = self._new, set()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._new or request_id in self._old


class Pending:
    """The requests under way of one client."""

    def __init__(self, *, limit: int, limit_bytes: int) -> None:
        self.counts = ClientStats()
        self.next_due = math.inf
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._waiters: dict[str, Waiter] = {}
        self._answered = _Memory(_REMEMBERED)
        self._given_up = _Memory(_REMEMBERED)

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiters

    def stats(self) -> ClientStats:
        """A copy of the counters as they are now."""
        return msgspec.structs.replace(self.counts, in_flight=len(self._waiters))

    def waiters(self) -> list[Waiter]:
        """Those that still wait."""
        return list(self._waiters.values())

    def add(self, waiter: Waiter) -> None:
        """Begin to wait. Raises Overloaded when the window is full, InvalidRequest when the id is under way already."""
        size = self._bytes + len(waiter.record.value)
        if len(self._waiters) >= self._limit or size > self._limit_bytes:
            self.counts.overloaded += 1
            full = f"{self._limit} requests" if size <= self._limit_bytes else f"{self._limit_bytes} bytes of requests"
            msg = f"{full} are in flight from this client: await some responses first, or raise its limit"
            raise Overloaded(msg)
        if waiter.id in self._waiters:
            msg = f"request {waiter.id} is in flight already"
            raise InvalidRequest(msg)
        self._waiters[waiter.id] = waiter
        self._bytes = size
        self.counts.requests += 1
        self.next_due = min(self.next_due, waiter.deadline)

    def resolve(self, response: Response, *, is_own: bool, now: float) -> bool:
        """Hand a response to its waiter; False when it was counted and dropped instead."""
        name = response.id
        waiter = self._waiters.get(name)
        if waiter is None:
            self._count_stray(name)
            return False
        if not is_own and response.status is not Status.OK:
            self.counts.foreign += 1
            return False
        if waiter.parts is not None or not response.final:
            return self._add_part(waiter, response, now)
        self._end(waiter)
        if waiter.future.done():  # its caller has gone in this very moment
            self.counts.late += 1
            return False
        self._answered.add(name)
        self.counts.responses += 1
        waiter.future.set_result(_with_times(response, now - waiter.started))
        return True

    def _add_part(self, waiter: Waiter, response: Response, now: float) -> bool:
        """Hand a part, or the end, to a stream; a part for a caller who takes none is dropped."""
        if waiter.parts is None:
            self.counts.unknown += 1
            return False
        fault = waiter.parts.finish(response) if response.final else waiter.parts.put(response)
        if fault is not None:
            self.fail(waiter.id, fault)
        elif response.final:
            self._end(waiter)
            self._answered.add(waiter.id)
            self.counts.responses += 1
            if not waiter.future.done():
                waiter.future.set_result(_with_times(response, now - waiter.started))
        else:
            self.counts.parts += 1
        return fault is None

    def fail(self, request_id: str, error: HeadraceError) -> None:
        """End one waiter with an error; nothing happens when it does not wait any more."""
        waiter = self._waiters.get(request_id)
        if waiter is not None:
            self._end(waiter)
            self._given_up.add(request_id)
            if not waiter.future.done():
                waiter.future.set_exception(error)
                waiter.future.exception()  # nobody may ever ask, and that is no reason for asyncio to complain

    def give_up(self, request_id: str) -> Waiter | None:
        """Forget a waiter whose caller has gone; None when it had ended already."""
        waiter = self._waiters.get(request_id)
        if waiter is not None:
            self._end(waiter)
            self._given_up.add(request_id)
            self.counts.abandoned += 1
        return waiter

    def expire(self, now: float) -> list[Waiter]:
        """Answer DEADLINE_EXCEEDED to everyone whose deadline has passed."""
        if now < self.next_due:
            return []
        due = [waiter for waiter in self._waiters.values() if waiter.deadline <= now]
        for waiter in due:
            self._end(waiter)
            self._given_up.add(waiter.id)
            self.counts.expired += 1
            if not waiter.future.done():
                waiter.future.set_result(_expired(waiter, now))
        self.next_due = min((waiter.deadline for waiter in self._waiters.values()), default=math.inf)
        return due

    def fail_all(self, error: HeadraceError) -> None:
        """End every waiter with an error."""
        for waiter in self.waiters():
            # Each gets its own: one exception raised in many tasks would collect all their tracebacks.
            self.fail(waiter.id, type(error)(*error.args))

    def _end(self, waiter: Waiter) -> None:
        del self._waiters[waiter.id]
        waiter.is_over = True
        self._bytes -= len(waiter.record.value)

    def _count_stray(self, name: str) -> None:
        if name in self._answered:
            self.counts.duplicate += 1
        elif name in self._given_up:
            self.counts.late += 1
        else:
            self.counts.unknown += 1


def _with_times(response: Response, seconds: float) -> Response:
    """Complete the receipt: the whole as the caller saw it, and what of it no worker accounts for."""
    receipt = response.receipt
    total = int(seconds * 1_000_000)
    rest = total - receipt.queued_us - receipt.batched_us - receipt.computed_us
    timed = msgspec.structs.replace(receipt, total_us=total, returned_us=max(0, rest))
    return msgspec.structs.replace(response, receipt=timed)


def _expired(waiter: Waiter, now: float) -> Response:
    waited = now - waiter.started
    detail = ErrorDetail(f"no response within {waited:.1f} s; answered by the client itself", retryable=True)
    receipt = Receipt(total_us=int(waited * 1_000_000))
    return Response(waiter.id, Status.DEADLINE_EXCEEDED, waiter.model, waiter.version, error=detail, receipt=receipt)
