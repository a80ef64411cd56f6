"""The client's calls that last: streams, whose answer comes part by part, sequences, which go on from step to step, and
`map`, which has many requests under way.

Leaving the loop, an error inside it and the cancellation of its task all end in the same place: the request is given up
and its tombstone written, and the worker stops at the model's next yield.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from functools import partial
from typing import NamedTuple, TypedDict, Unpack

from contracts.codec import STREAM, encode_sequence
from contracts.errors import DeadlineExceeded
from contracts.messages import Parameters, Response, SequenceStep
from contracts.names import Priority
from producer.admission import check_priority
from producer.directory import Directory
from producer.fanout import FanOut
from producer.large_tensors import LargeTensors
from producer.parts import MAX_PARTS, Parts
from producer.pending import Pending, Waiter
from producer.plan import Inputs, ModelPlan
from producer.sequences import Sequence, Stepping
from producer.tombstones import Tombstones


class StreamOptions(TypedDict, total=False):
    """What `stream` takes besides model and inputs; those that `infer` has too mean the same.

    `idle_seconds` is how long the next part may take, `buffer_parts` how many parts may wait to be read.
    """

    version: int | None
    parameters: Parameters | None
    ttl_seconds: float | None
    request_id: str | None
    key: str | bytes | None
    priority: Priority
    idle_seconds: float | None
    buffer_parts: int


_GIVE_UP_MS = 60_000  # for so long workers that are busy or away may learn that a sequence was given up


class Extras(NamedTuple):
    """What a request that lasts has besides: where its parts go, and more headers."""

    parts: Parts | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    priority: Priority = "normal"


NO_EXTRAS = Extras()


def prioritized(priority: Priority, extras: Extras = NO_EXTRAS) -> Extras:
    """The same for a request of some priority. Raises InvalidRequest when there is no such priority."""
    if check_priority(priority) == "normal":
        return extras
    return extras._replace(headers=(*extras.headers, ("priority", priority.encode())), priority=priority)


class LastingCalls:
    """The part of InferenceClient that has them."""

    _tombstones: Tombstones
    _pending: Pending
    _directory: Directory
    _large: LargeTensors

    def sequence(self, model: str, *, version: int | None = None, sequence_id: str | None = None) -> Sequence:
        """A sequence of requests to a model that keeps a state between them, as an async context manager.

        With a `sequence_id` its first step starts it anew unless that is running already in this context; leaving the
        context then leaves the state to its idle timeout. The version is chosen once, when the context is entered.
        """

        async def ask(plan: ModelPlan, body: bytes, ttl_seconds: float | None, step: SequenceStep) -> Response:
            extras = Extras(headers=tuple(encode_sequence(step)))
            waiter, future = self._launch(plan, body, ttl_seconds, None, step.id, extras)
            try:
                return await future
            except asyncio.CancelledError:
                self._leave(waiter)
                raise

        def give_up(name: str) -> None:
            self._tombstones.leave(name, _GIVE_UP_MS)

        find = partial(self._find_plan, model, version)
        return Sequence(Stepping(find, self._large.encode, ask, give_up), sequence_id)

    async def stream(
        self, model: str, inputs: Inputs, **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[Response, None]:
        """Ask a streaming model and yield the parts of its answer as they come, each once and in order.

        The last one is `final`: it has the receipt, and outputs only if the model ended with some. A model that does
        not stream gives one final part. Leaving the loop cancels the request.

        Raises as `infer` does; after some parts, too. Besides: StreamBroken when the answer cannot be continued as it
        began, Overloaded when more than `buffer_parts` parts wait to be read, DeadlineExceeded when the next part
        takes longer than `idle_seconds`.
        """
        extras = prioritized(options.get("priority", "normal"), Extras(headers=(STREAM,)))
        plan = await self._find_plan(model, options.get("version"))
        body = await self._large.encode(plan, inputs, options.get("parameters"))
        changed = asyncio.Event()
        parts = Parts(changed.set, options.get("buffer_parts", MAX_PARTS))
        waiter, future = self._launch(
            plan,
            body,
            options.get("ttl_seconds"),
            options.get("request_id"),
            options.get("key"),
            extras._replace(parts=parts),
        )
        future.add_done_callback(lambda _: changed.set())
        is_over = False
        try:
            while True:
                changed.clear()
                while (part := parts.take()) is not None:
                    yield part
                if future.done():
                    final = future.result().raise_for_status()
                    is_over = True
                    yield final
                    return
                await _change(changed, waiter, options.get("idle_seconds"))
        finally:
            if not is_over:
                self._leave(waiter)

    async def map(  # noqa: PLR0913 - one call, all of its options
        self,
        model: str,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        in_flight: int = 256,
        ordered: bool = True,
        raise_on_error: bool = False,
        version: int | None = None,
        parameters: Parameters | None = None,
        ttl_seconds: float | None = None,
        priority: Priority = "normal",
    ) -> AsyncGenerator[Response, None]:
        """Ask for each of many inputs, `in_flight` at a time, and yield the responses.

        They come in the order of the inputs, or as they arrive. An error is a response with its status, unless
        `raise_on_error`; what was refused before it was sent has no id. Leaving the loop early abandons the rest.
        """
        self._check_usable()
        run = FanOut(limit=max(1, in_flight), ordered=ordered)
        under_way: dict[str, Waiter] = {}

        async def send(item: Inputs) -> asyncio.Future[Response]:
            waiter, future = await self._dispatch(model, item, version, parameters, ttl_seconds, None, None, priority)
            under_way[waiter.id] = waiter
            return future

        name, _, number = model.partition("@")
        known = version or (int(number) if number.isdecimal() else 0)
        feeder = asyncio.get_running_loop().create_task(run.feed(inputs, send, name, known), name="headrace.client.map")
        try:
            while (response := await run.next()) is not None:
                under_way.pop(response.id, None)
                yield response.raise_for_status() if raise_on_error else response
        finally:
            feeder.cancel()
            await asyncio.wait([feeder])
            for waiter in under_way.values():
                self._abandon(waiter)

    async def _find_plan(self, model: str, version: int | None) -> ModelPlan:
        return self._plan(model, version) or await self._directory.plan(model, version)

    def _leave(self, waiter: Waiter) -> None:
        """Nobody waits for what is still to come."""
        self._pending.give_up(waiter.id)
        self._tombstones.leave(waiter.id, self._ttl_left_ms(waiter))

    @abstractmethod
    def _plan(self, model: str, version: int | None) -> ModelPlan | None:
        """How to send to a model, if that is known."""

    @abstractmethod
    def _check_usable(self) -> None:
        """Raise when the client is closed, broken or not open."""

    @abstractmethod
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
        """Encode and send a request."""

    @abstractmethod
    def _abandon(self, waiter: Waiter) -> None:
        """Nobody waits for a request any more."""

    @abstractmethod
    def _launch(
        self,
        plan: ModelPlan,
        body: bytes,
        ttl_seconds: float | None,
        request_id: str | None,
        key: str | bytes | None,
        extras: Extras = NO_EXTRAS,
    ) -> tuple[Waiter, asyncio.Future[Response]]:
        """Send a request."""

    @abstractmethod
    def _ttl_left_ms(self, waiter: Waiter) -> int:
        """What is left of a request's time to live."""


async def _change(changed: asyncio.Event, waiter: Waiter, idle_seconds: float | None) -> None:
    try:
        async with asyncio.timeout(idle_seconds):
            await changed.wait()
    except TimeoutError as exc:
        text = f"{waiter.model}@{waiter.version} request {waiter.id}: no further part within {idle_seconds:g} s"
        raise DeadlineExceeded(text) from exc
