"""Requests under idempotency keys: one process carries a request out, the others look in Redis until it is answered.

What a key has begun goes on when its caller leaves, because somebody else may come for it. A submitter keeps its mark
alive; when it dies, the first of those who wait sends the request again, under the same id and with its own reply
address. Redis is asked before anything is sent: while it is away, requests with a key are refused.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

import msgspec

from contracts.adapters.idempotency import Claim, Idempotency, KeyedRequest
from contracts.adapters.redis import RedisDoor
from contracts.clock import Clock
from contracts.errors import HeadraceError, Overloaded, TransportError
from contracts.messages import Response
from producer.asks import Ask, Sender
from producer.cache import as_cached
from producer.flights import Flight
from producer.idempotency import Answer, Submit, Wait, expired, is_kept, next_step
from producer.settings import ClientSettings

log = logging.getLogger(__name__)

_CALLS_AT_ONCE = 8  # in a burst of keys the wait for a connection must not count against a call's own second
_AGAIN_SECONDS = 0.5  # between two attempts while Redis is away


class Keyed:
    """Runs requests under keys."""

    def __init__(self, redis: RedisDoor, settings: ClientSettings, sender: Sender, clock: Clock) -> None:
        own = settings.idempotency
        self._store = Idempotency(
            redis,
            own.tenant,
            holder=secrets.token_hex(8),
            mark_ms=int(own.mark_seconds * 1000),
            keep_ms=int(own.keep_seconds * 1000),
        )
        self._room = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._mark_seconds = own.mark_seconds
        self._max_bytes = own.max_response_bytes
        self._grace_seconds = settings.client.grace_seconds
        self._sender = sender
        self._clock = clock

    async def run(self, flight: Flight, ask: Ask) -> Response:
        """Send the request or wait for who does. Raises Overloaded without Redis, InvalidRequest on a conflict."""
        key = ask.idempotency_key or ""
        request = KeyedRequest(key, flight.digest, ask.request_id or self._sender.next_id())
        waited_for, ttl = "", ask.ttl_seconds
        while (now := self._clock.monotonic()) < ask.deadline:
            claim = await self._begin(request, waited_for)
            if claim is None:
                await asyncio.sleep(min(_AGAIN_SECONDS, ask.deadline - now))
                continue
            step = next_step(claim, key=key, waited_seconds=now - ask.started, left_seconds=ask.deadline - now)
            if isinstance(step, Answer):
                flight.name(claim.request_id)
                return as_cached(step.response)
            if isinstance(step, Submit):
                return await self._submit(
                    flight, ask, msgspec.structs.replace(request, request_id=step.request_id), ttl
                )
            waited_for, ttl = "", ask.deadline - self._grace_seconds - now
            if isinstance(step, Wait):
                flight.name(step.request_id)
                waited_for = step.request_id
                await asyncio.sleep(min(step.seconds, ask.deadline - now))
        return expired(flight.id, ask.plan.key, now - ask.started)

    async def _begin(self, request: KeyedRequest, waited_for: str) -> Claim | None:
        """The claim; None when Redis is away while somebody is waited for, who may be heard of yet."""
        try:
            async with self._room:
                return await self._store.begin(request, waited_for)
        except TransportError as exc:
            if waited_for:
                return None
            msg = f"idempotency key {request.key!r} cannot be looked up, so nothing was sent: {exc}"
            raise Overloaded(msg) from exc

    async def _submit(self, flight: Flight, ask: Ask, request: KeyedRequest, ttl: float | None) -> Response:
        try:
            if ttl is not None and ttl <= 0:  # only the grace is left
                await self._give_up(request)
                return expired(request.request_id, ask.plan.key, self._clock.monotonic() - ask.started)
            waiter, future = self._sender.launch(
                ask.plan, ask.body, ttl, request.request_id, ask.partition_key, ask.extras
            )
            flight.sent(waiter)
            response = await self._response(future, request)
        except HeadraceError:
            await self._give_up(request)
            raise
        await self._keep(flight, request, response)
        return response

    async def _response(self, future: asyncio.Future[Response], request: KeyedRequest) -> Response:
        """Await a response and keep the mark alive."""
        while not future.done():
            done, _ = await asyncio.wait([future], timeout=self._mark_seconds / 3)
            if not done:
                try:
                    async with self._room:
                        await self._store.renew(request)
                except TransportError as exc:
                    log.warning("the mark of idempotency key %r could not be renewed: %s", request.key, exc)
        return future.result()

    async def _keep(self, flight: Flight, request: KeyedRequest, response: Response) -> None:
        """Store how it ended. Callers do not wait for a Redis that is away; the response is stored when it is back."""
        size = sum(len(tensor.data) for tensor in response.outputs)
        kept = response if size <= self._max_bytes else None
        if kept is None:
            log.info("the response of idempotency key %r has %d bytes: not kept", request.key, size)
        is_final = kept is not None and is_kept(response.status)
        give_up_at = self._clock.monotonic() + self._mark_seconds
        while True:
            try:
                async with self._room:
                    await self._store.finish(request, kept, is_kept=is_final)
            except TransportError as exc:
                if not is_final or self._clock.monotonic() > give_up_at:
                    log.warning("the response of idempotency key %r could not be stored: %s", request.key, exc)
                    return
                flight.land(response)
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                return

    async def _give_up(self, request: KeyedRequest) -> None:
        try:
            async with self._room:
                await self._store.give_up(request)
        except TransportError as exc:
            log.debug("idempotency key %r is free when its mark lapses: %s", request.key, exc)
