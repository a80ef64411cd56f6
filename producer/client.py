"""The asynchronous client: publish requests, await their responses.

    async with InferenceClient(bootstrap="127.0.0.1:9092") as client:
        response = await client.infer("digits", {"image": image})

A request is accepted once it is queued, and ends exactly once: in a response, or at ttl + grace in DEADLINE_EXCEEDED
answered here. Any number of tasks share one client. Per request there is one future and no task and no timer: one loop
reads responses, one looks whether anything is due.

A task that is cancelled while it awaits `infer` frees its place in the window at once and leaves a tombstone, so that
workers need not compute what nobody wants; nobody else notices.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import warnings
from types import TracebackType
from typing import Any, Self

from contracts.adapters.cancels import Cancels
from contracts.adapters.inboxes import Inboxes
from contracts.adapters.plans import PlanStore
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import Registry
from contracts.clock import Clock, SystemClock
from contracts.codec import encode_headers
from contracts.errors import ClientClosed, TransportError
from contracts.messages import Parameters, ReplyAddress, RequestHeaders, Response
from contracts.names import Priority
from contracts.partitioner import Partitioner
from contracts.service import Loops
from producer.admission import check_priority, check_reply_to, check_request_id, ttl_ms
from producer.asks import Ask, Call, Sender, make_ask
from producer.directory import Directory
from producer.handle import Handle
from producer.inbox import Inbox
from producer.jobs import PipelinePlan
from producer.large_tensors import LargeTensors
from producer.lasting import NO_EXTRAS, Extras, LastingCalls, prioritized
from producer.metrics import CLIENTS
from producer.outbox import Outbox
from producer.pending import ClientStats, Outgoing, Pending, Waiter
from producer.plan import Inputs, ModelPlan
from producer.settings import ClientSettings, client_settings
from producer.sharing import Sharing
from producer.tails import Tails
from producer.tombstones import Tombstones

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.05  # how late a local DEADLINE_EXCEEDED may be
_STOP_SECONDS = 5.0
_ID_BITS = 2**48 - 1


class InferenceClient(LastingCalls):
    """Sends inference requests and hands each response to whoever asked."""

    def __init__(
        self,
        settings: ClientSettings | None = None,
        *,
        bootstrap: str | None = None,
        redis: str | None = None,
        inbox: str | None = None,
        max_in_flight: int | None = None,
        blobs: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Settings come from the argument, or from the keywords and then the environment; connects in `open`."""
        self._settings = settings = settings or client_settings(bootstrap, redis, inbox, max_in_flight, blobs)
        self._clock = clock or SystemClock()
        self._pending = Pending(limit=settings.client.max_in_flight, limit_bytes=settings.client.max_in_flight_bytes)
        self._prefix = secrets.token_hex(10)  # with 48 counted bits: unique, for a tenth of the cost of a random id
        self._numbers = itertools.count(secrets.randbits(32))
        self._tails = Tails(settings.client, lambda: self._inbox.address)
        self._large = LargeTensors(settings.blobs, self._pending, self._clock)
        self._is_caching = settings.cache.enabled
        self._broken: TransportError | None = None
        self._is_open = False
        self._is_closed = False
        self._closing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect, lease an inbox and read the registry.

        Raises TransportError when Kafka or Redis cannot be reached, Overloaded when all inboxes are taken.
        """
        if self._is_open or self._is_closed:
            msg = "a client is opened once; make another one"
            raise ClientClosed(msg)
        self._loop = asyncio.get_running_loop()
        self._loops = Loops("headrace.client")
        redis = self._settings.redis
        self._redis = await RedisDoor.open(redis.url.get_secret_value(), prefix=redis.prefix)
        self._build()
        self._is_open = True
        try:
            await self._directory.open()
            await self._outbox.open()
            await self._inbox.open()
        except BaseException:
            await self.close()
            raise
        self._start_loops()
        CLIENTS.add(self)
        return self

    def _build(self) -> None:
        settings, kafka, clock = self._settings, self._settings.kafka, self._clock
        self._tombstones = Tombstones(Cancels(self._redis))
        self._outbox = Outbox(kafka, self._pending, clock)
        leases, moved, large = Inboxes(self._redis), self._tails.clear, self._large
        self._inbox = Inbox(kafka, settings.inbox, leases, self._pending, clock=clock, moved=moved, large=large)
        self._directory = Directory(
            Registry(self._redis, settings.redis.pool),
            self._outbox,
            prefix=kafka.prefix,
            refresh_seconds=settings.client.refresh_seconds,
            longest_run=settings.client.run_records,
            store=PlanStore(self._redis, keep_seconds=settings.redis.plan_seconds),
        )
        self._plans = self._directory.plans
        sender = Sender(self._launch, self._abandon, self.withdraw, self._next_id)
        self._sharing = Sharing(self._redis, settings, sender, clock)

    def _start_loops(self) -> None:
        self._loops.spawn("inbox", self._inbox.poll_loop())
        self._loops.spawn("lease", self._inbox.renew_loop())
        self._loops.spawn("recovery", self._outbox.recover_loop())
        self._loops.spawn("registry", self._directory.refresh_loop())
        self._loops.spawn("tombstones", self._tombstones.write_loop())
        self._loops.spawn("expiry", self._expire_loop())
        self._watch = self._loop.create_task(self._watch_loops(), name="headrace.client.watch")

    async def _watch_loops(self) -> None:
        """A loop that ends by itself leaves callers waiting for nothing: tell them all."""
        try:
            await self._loops.wait()
        except Exception as exc:
            log.exception("the client cannot go on")
            self._broken = TransportError(f"the client cannot go on, one of its loops failed: {exc!r}")
            self._pending.fail_all(self._broken)

    async def close(self) -> None:
        """Fail every waiter with ClientClosed, give the inbox back, disconnect. Idempotent."""
        self._is_closed = True
        self._pending.fail_all(ClientClosed("the client was closed; requests in flight may still be carried out"))
        async with self._closing:
            if not self._is_open:
                return
            if self._watch is not None:
                self._watch.cancel()
            self._inbox.stop()
            await self._loops.join("inbox", _STOP_SECONDS)
            await self._loops.stop()
            CLIENTS.remove(self)
            await asyncio.gather(self._large.close(), self._sharing.close())
            await self._tombstones.flush()
            await self._outbox.close()
            await self._inbox.close()
            await self._redis.close()
            self._is_open = False

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_is_open", False):
            _warn(f"{self!r} was not closed: its callers may wait for ever", ResourceWarning, source=self)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def infer(  # noqa: PLR0913 - one call, all of its options
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        parameters: Parameters | None = None,
        ttl_seconds: float | None = None,
        request_id: str | None = None,
        key: str | bytes | None = None,
        priority: Priority = "normal",
        idempotency_key: str | None = None,
        cache: bool | None = None,
        raise_on_error: bool = True,
    ) -> Response:
        """Ask a model and await its response.

        `model` may be `name` (the route decides the version) or `name@version`. `inputs` maps names to arrays whose
        first dimension is rows. Requests with the same `key` go to the same partition; those of `high` priority
        overtake others, `low` ones let others pass. Repetitions under one `idempotency_key` share one run and its
        response, across processes; `cache` says whether the response of an earlier equal call, or of one under way,
        will do (None: as the settings say).

        Raises the RequestError that a status other than OK stands for, unless `raise_on_error` is False. Raises
        InvalidRequest for what is knowably wrong, Overloaded at once when the window is full, ModelNotFound,
        ClientClosed and TransportError.
        """
        if idempotency_key is not None or (self._is_caching if cache is None else cache):
            call = Call(model, inputs, version, parameters, ttl_seconds, request_id, key, priority, idempotency_key)
            response = await self._sharing.infer(await self._ask(call))
            return response.raise_for_status() if raise_on_error else response
        waiter, future = await self._dispatch(
            model, inputs, version, parameters, ttl_seconds, request_id, key, priority
        )
        try:
            response = await future
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise
        return response.raise_for_status() if raise_on_error else response

    async def submit(  # noqa: PLR0913 - the same
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        parameters: Parameters | None = None,
        ttl_seconds: float | None = None,
        request_id: str | None = None,
        key: str | bytes | None = None,
        priority: Priority = "normal",
        idempotency_key: str | None = None,
        cache: bool | None = None,
    ) -> Handle:
        """Send a request and return a handle of it, without waiting for the response. Errors as in `infer`."""
        if idempotency_key is not None or (self._is_caching if cache is None else cache):
            call = Call(model, inputs, version, parameters, ttl_seconds, request_id, key, priority, idempotency_key)
            return await self._sharing.submit(await self._ask(call))
        waiter, future = await self._dispatch(
            model, inputs, version, parameters, ttl_seconds, request_id, key, priority
        )
        return Handle(waiter, future, lambda: self.withdraw(waiter))

    async def publish(  # noqa: PLR0913 - the same
        self,
        model: str,
        inputs: Inputs,
        *,
        reply_to: str | ReplyAddress | None = None,
        version: int | None = None,
        parameters: Parameters | None = None,
        ttl_seconds: float | None = None,
        request_id: str | None = None,
        key: str | bytes | None = None,
        priority: Priority = "normal",
    ) -> str:
        """Send a request whose response goes to `reply_to` (`topic/partition/token`), or nowhere; return its id.

        Returns once the broker has it. Raises as `infer` does before it sends.
        """
        plan = await self._find_plan(model, version)
        name = self._next_id() if request_id is None else check_request_id(request_id)
        body = await self._large.encode(plan, inputs, parameters)
        ttl = self._settings.client.ttl_seconds if ttl_seconds is None else ttl_seconds
        reply = check_reply_to(self._settings.kafka.prefix, reply_to)
        headers = encode_headers(RequestHeaders(name, reply, ttl_ms(ttl), priority=check_priority(priority)))
        await self._outbox.publish(self._outgoing(plan, body, headers, key, self._clock.monotonic(), priority), ttl)
        return name

    async def withdraw(self, waiter: Waiter) -> None:
        """Tell the workers that a request is not wanted any more; used by handles."""
        await self._tombstones.write(waiter.id, max(1, self._ttl_left_ms(waiter)))

    def stats(self) -> ClientStats:
        """What this client has done so far."""
        return self._pending.stats()

    # --- the hot path -------------------------------------------------------------------------------------------------

    async def _dispatch(
        self,
        model: str,
        inputs: Inputs,
        version: int | None,
        parameters: Parameters | None,
        ttl_seconds: float | None,
        request_id: str | None,
        key: str | bytes | None,
        priority: Priority,
    ) -> tuple[Waiter, asyncio.Future[Response]]:
        extras = NO_EXTRAS if priority == "normal" else prioritized(priority)
        plan = self._plan(model, version) or await self._directory.plan(model, version)
        body = await self._large.encode(plan, inputs, parameters)
        return self._launch(plan, body, ttl_seconds, request_id, key, extras)

    def _launch(
        self,
        plan: ModelPlan,
        body: bytes,
        ttl_seconds: float | None,
        request_id: str | None,
        key: str | bytes | None,
        extras: Extras = NO_EXTRAS,
    ) -> tuple[Waiter, asyncio.Future[Response]]:
        tail, patience = self._tails[ttl_seconds]
        name = self._next_id() if request_id is None else check_request_id(request_id)
        now = self._clock.monotonic()
        record = self._outgoing(plan, body, [("id", name.encode()), *tail, *extras.headers], key, now, extras.priority)
        future: asyncio.Future[Response] = self._loop.create_future()
        waiter = Waiter(name, future, now, now + patience, plan.key.model, plan.key.version, record, extras.parts)
        self._pending.add(waiter)
        if isinstance(plan, PipelinePlan):
            plan.opened()
            future.add_done_callback(plan.closed)
        self._outbox.send(waiter)
        return waiter, future

    def _outgoing(
        self,
        plan: ModelPlan,
        body: bytes,
        headers: list[tuple[str, bytes]],
        key: str | bytes | None,
        now: float,
        priority: Priority,
    ) -> Outgoing:
        if isinstance(plan, PipelinePlan):
            return plan.outgoing(headers, body, lambda partitioner: self._partition(partitioner, key, now))
        topic, partitioner = (plan.topic, plan.partitioner) if priority == "normal" else plan.place(priority)
        return Outgoing(topic, self._partition(partitioner, key, now), body, headers)

    def _partition(self, partitioner: Partitioner, key: str | bytes | None, now: float) -> int:
        if key is None:
            return partitioner.next(now, len(self._pending))
        return partitioner.of_key(key.encode() if isinstance(key, str) else key)

    async def _ask(self, call: Call) -> Ask:
        """The same for a call that may share its run with others: all of it but sending."""
        plan = await self._find_plan(call.model, call.version)
        now, patience = self._clock.monotonic(), self._tails[call.ttl_seconds][1]
        return await make_ask(call, plan, self._large.encode, now=now, patience=patience)

    def _plan(self, model: str, version: int | None) -> ModelPlan | None:
        if self._is_closed or self._broken is not None or not self._is_open:
            self._check_usable()
        return self._plans.get(model if version is None else (model, version))

    def _check_usable(self) -> None:
        if self._is_closed:
            msg = "the client is closed"
            raise ClientClosed(msg)
        if self._broken is not None:
            raise TransportError(*self._broken.args)
        if not self._is_open:
            msg = "the client is not open: use `async with`, or await client.open()"
            raise ClientClosed(msg)

    def _next_id(self) -> str:
        return f"{self._prefix}{next(self._numbers) & _ID_BITS:012x}"

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _abandon(self, waiter: Waiter) -> None:
        if self._pending.give_up(waiter.id) is not None:
            self._tombstones.leave(waiter.id, self._ttl_left_ms(waiter))

    def _ttl_left_ms(self, waiter: Waiter) -> int:
        left = waiter.deadline - self._settings.client.grace_seconds - self._clock.monotonic()
        return int(left * 1000)

    async def _expire_loop(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._pending.expire(self._clock.monotonic())
