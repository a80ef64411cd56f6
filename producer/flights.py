"""Runs that any number of callers share: the first one starts it, the others join, and whoever leaves leaves alone.

A flight is a task of its own, so that no caller's cancellation reaches another. It is cancelled when its last caller
has gone, unless it `outlives` them. Each caller gets an error of its own: one exception raised in many tasks would
collect all their tracebacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from contracts.errors import ClientClosed, HeadraceError, InternalError, Overloaded
from contracts.messages import Response, Status
from producer.pending import Waiter

Run = Callable[["Flight"], Coroutine[Any, Any, Response]]

_CLOSE_SECONDS = 3.0


class Flight:
    """One run. `digest` is what it was started with; `id` is known soon, `waiter` once its request was sent here."""

    __slots__ = ("_ended", "_named", "_result", "callers", "digest", "id", "is_given_up", "outlives", "task", "waiter")

    def __init__(self, digest: str, *, outlives: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.digest = digest
        self.outlives = outlives
        self.id = ""
        self.callers = 0
        self.waiter: Waiter | None = None
        self.is_given_up = False
        self.task: asyncio.Task[None]
        self._named = asyncio.Event()
        self._ended = asyncio.Event()
        self._result: asyncio.Future[Response] = loop.create_future()

    @property
    def has_ended(self) -> bool:
        """Whether its result is known."""
        return self._result.done()

    @property
    def can_be_joined(self) -> bool:
        """Whether it is under way, or has just ended in a result; a failure is for those who were there."""
        if self.is_given_up:
            return False
        if not self._result.done():
            return True
        return self._result.exception() is None and self._result.result().status is Status.OK

    def name(self, request_id: str) -> None:
        """Tell which request it is."""
        self.id = request_id
        self._named.set()

    def sent(self, waiter: Waiter) -> None:
        """Tell that its request is under way."""
        self.waiter = waiter
        self.name(waiter.id)

    def land(self, response: Response) -> None:
        """Give all callers the response; what the run does after that is nobody's wait."""
        if not self._result.done():
            self._result.set_result(response)
            self._end()

    def fail(self, error: HeadraceError) -> None:
        """Give all callers an error."""
        if not self._result.done():
            self._result.set_exception(error)
            self._result.exception()  # nobody may ever ask
            self._end()

    def _end(self) -> None:
        self._named.set()
        self._ended.set()

    async def named(self) -> None:
        """Wait until its id is known. Raises what ended it before it had one."""
        await self._named.wait()
        if not self.id:
            self._outcome()

    async def result(self) -> Response:
        """Wait for its response; may be awaited by many. Raises what ended it instead."""
        await self._ended.wait()
        return self._outcome()

    def _outcome(self) -> Response:
        error = self._result.exception()
        if isinstance(error, HeadraceError):
            raise type(error)(*error.args)
        return self._result.result()


class Flights:
    """The flights of one client, by what makes two calls the same."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._by_key: dict[Hashable, Flight] = {}
        self._running: set[Flight] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Hashable) -> Flight | None:
        """The flight that a caller with this key may join."""
        flight = self._by_key.get(key)
        return flight if flight is not None and flight.can_be_joined else None

    def start(self, key: Hashable, digest: str, run: Run, *, outlives: bool) -> Flight:
        """Start one. Raises Overloaded when there are too many, ClientClosed."""
        if self._is_closed:
            msg = "the client is closed"
            raise ClientClosed(msg)
        if len(self._by_key) >= self._limit:
            msg = f"{self._limit} shared requests are in flight from this client: await some responses first"
            raise Overloaded(msg)
        flight = Flight(digest, outlives=outlives, loop=self._loop)
        self._by_key[key] = flight
        self._running.add(flight)
        flight.task = self._loop.create_task(self._fly(key, flight, run), name="headrace.client.flight")
        flight.task.add_done_callback(lambda _: self._over(key, flight))
        return flight

    async def wait(self, flight: Flight) -> Response:
        """Wait for a flight as one of its callers; the last one to leave ends it."""
        flight.callers += 1
        try:
            return await flight.result()
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.outlives and not flight.has_ended:
                flight.is_given_up = True
                flight.task.cancel()

    async def close(self) -> None:
        """End all flights: those that were published by their own requests' end, which has come; the others here."""
        self._is_closed = True
        for flight in self._running:
            if flight.waiter is None or flight.has_ended:
                flight.task.cancel()
        tasks = [flight.task for flight in self._running]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _fly(self, key: Hashable, flight: Flight, run: Run) -> None:
        try:
            flight.land(await run(flight))
        except HeadraceError as exc:
            flight.fail(exc)
        except Exception as exc:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            flight.fail(InternalError(f"a shared request failed: {exc!r}"))

    def _over(self, key: Hashable, flight: Flight) -> None:
        """Also called for a flight that was cancelled before it began."""
        flight.fail(ClientClosed("the client was closed, or everybody gave up; the request may still be carried out"))
        self._running.discard(flight)
        if self._by_key.get(key) is flight:
            del self._by_key[key]
