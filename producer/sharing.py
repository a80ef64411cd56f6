"""Calls that share one run of the model: repetitions under an idempotency key, and equal calls of one client.

Repetitions under a key are `keyed`'s affair, across processes. Without a key nothing leaves this client: a call may be
answered from its cache, or join an equal one that is under way. Each caller waits for its own deadline, and when the
run it joined ended by the deadline of somebody else, it begins another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from contracts.adapters.redis import RedisDoor
from contracts.clock import Clock
from contracts.messages import Response
from producer.asks import Ask, Sender
from producer.cache import ResponseCache, as_cached
from producer.flights import Flight, Flights
from producer.handle import Handle
from producer.idempotency import conflict, digest, expired, is_someone_elses_deadline
from producer.keyed import Keyed
from producer.settings import ClientSettings

_SLACK_SECONDS = 0.1  # a run's own deadline is noticed in a loop that ticks: it is to come first


class Sharing:
    """The shared calls of one client."""

    def __init__(self, redis: RedisDoor, settings: ClientSettings, sender: Sender, clock: Clock) -> None:
        self._flights = Flights(limit=settings.client.max_in_flight)
        self._cache = ResponseCache(ttl_seconds=settings.cache.ttl_seconds, max_bytes=settings.cache.max_bytes)
        self._is_single_flight = settings.cache.single_flight
        self._keyed = Keyed(redis, settings, sender, clock)
        self._sender = sender
        self._clock = clock
        self._calls: set[asyncio.Task[Response]] = set()

    async def infer(self, ask: Ask) -> Response:
        """The response to a request, whoever had it run. Raises as `InferenceClient.infer`, but for no status."""
        content = _content(ask)
        hit = self._hit(ask, content)
        return hit or await self._wait(ask, content, *self._join(ask, content))

    async def submit(self, ask: Ask) -> Handle:
        """A handle of a request, once its id is known."""
        content, loop = _content(ask), asyncio.get_running_loop()
        hit = self._hit(ask, content)
        if hit is not None:
            ready: asyncio.Future[Response] = loop.create_future()
            ready.set_result(hit)
            return Handle(hit, ready, _nothing)
        flight, is_mine = self._join(ask, content)
        call = loop.create_task(self._wait(ask, content, flight, is_mine), name="headrace.client.call")
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            await flight.named()
        except BaseException:
            call.cancel()
            raise
        return Handle(flight, call, lambda: self._withdraw(flight))

    async def close(self) -> None:
        """End everything; what was sent must have ended before."""
        await self._flights.close()
        if self._calls:
            await asyncio.wait(self._calls)

    def _hit(self, ask: Ask, content: str) -> Response | None:
        return None if ask.idempotency_key is not None else self._cache.get(content, self._clock.monotonic())

    def _join(self, ask: Ask, content: str) -> tuple[Flight, bool]:
        """The flight for a request, and whether it was started for it."""
        name = ask.idempotency_key
        key: Hashable = ("key", name) if name is not None else content if self._is_single_flight else object()
        flight = self._flights.get(key)
        if flight is None:
            run = self._keyed.run if name is not None else self._run
            return self._flights.start(key, content, lambda it: run(it, ask), outlives=name is not None), True
        if name is not None and flight.digest != content:
            raise conflict(name, flight.id)
        return flight, False

    async def _wait(self, ask: Ask, content: str, flight: Flight, is_mine: bool) -> Response:  # noqa: FBT001
        while True:
            try:
                async with asyncio.timeout(self._left(ask) + _SLACK_SECONDS):
                    response = await self._flights.wait(flight)
            except TimeoutError:
                return expired(flight.id, ask.plan.key, self._clock.monotonic() - ask.started)
            if is_mine:
                return response
            if not is_someone_elses_deadline(response, self._left(ask)):
                return as_cached(response)
            flight, is_mine = self._join(ask, content)

    async def _run(self, flight: Flight, ask: Ask) -> Response:
        """A run without a key: what the client does for any request, and the cache."""
        waiter, future = self._sender.launch(
            ask.plan, ask.body, ask.ttl_seconds, ask.request_id or self._sender.next_id(), ask.partition_key, ask.extras
        )
        flight.sent(waiter)
        try:
            response = await future
        except asyncio.CancelledError:
            self._sender.abandon(waiter)
            raise
        self._cache.put(flight.digest, response, self._clock.monotonic())
        return response

    async def _withdraw(self, flight: Flight) -> None:
        """Nobody's wish ends what others wait for: not in this client, and under a key not anywhere."""
        if flight.waiter is not None and flight.callers == 1 and not flight.outlives:
            await self._sender.withdraw(flight.waiter)

    def _left(self, ask: Ask) -> float:
        return ask.deadline - self._clock.monotonic()

    def _ended(self, call: asyncio.Task[Response]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # nobody may ever ask for it


def _content(ask: Ask) -> str:
    return digest(ask.plan.key if ask.idempotency_key is None else ask.named, ask.body)


async def _nothing() -> None:
    """There is nothing left to withdraw."""
