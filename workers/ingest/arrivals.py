"""Between the log and the queue: requests whose tensors lie in the store wait here until their bytes have come.

Reading happens in threads. What it brings counts against a budget until nobody holds it any more: not while it waits
for a batch and not while the engine runs it, since a batch that is lost runs again. So a thousand large requests cost
no more memory than the budget; the others wait as references, and small requests pass them. With `order: per_key` none
passes an earlier one of its key, nor a step of a sequence its predecessor.

A payload that is gone, or is not what the reference says, is the request's own fault: INVALID. A store that cannot be
reached is nobody's, and the request is tried again later. In doubt about the lease neither is said: the request waits
until there is trust again, or its partition is another worker's.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from contracts.adapters.blobs import Blobs, ByteBudget
from contracts.clock import Clock
from contracts.errors import ConfigurationError, InvalidRequest, PayloadLost, TransportError
from contracts.messages import Status
from contracts.payloads import URL_VARIABLE
from contracts.tensors import Tensor
from workers.ingest import metrics
from workers.ingest.delivery import Delivery, tenant_of
from workers.ingest.drain import Serving
from workers.ingest.responder import Responder
from workers.ingest.split import forget
from workers.ingest.suspects import Suspects

log = logging.getLogger(__name__)

_NO_STORE = f"a tensor came as a reference, and these workers have no store to look it up in: set {URL_VARIABLE}"
_DOUBT_SECONDS = 0.2
_EXPIRED = "the time to live ended before the payload was read"

Then = Callable[[Delivery], None]


class Store(NamedTuple):
    """Where the models of a worker read payloads, what they may hold of them together, and what a slot can take."""

    blobs: Blobs | None
    budget: ByteBudget
    request_bytes: int


class Fault(NamedTuple):
    """Why a request cannot be run; `status` None: the reason may pass, so it is tried again later."""

    status: Status | None
    message: str


class Content(Protocol):
    """What can be said of inputs only when their bytes are there."""

    def check_content(self, inputs: tuple[Tensor, ...]) -> None:
        """Raises InvalidRequest."""


class Arrivals:
    """Hands complete requests to the batcher."""

    def __init__(
        self,
        batcher: Serving,
        *,
        store: Store,
        validator: Content,
        responder: Responder,
        suspects: Suspects,
        clock: Clock,
        is_trusted: Callable[[], bool],
        keeps_order: bool,
    ) -> None:
        self._batcher = batcher
        self.pump = batcher.pump
        """To be called when the last of several was put."""
        self._blobs = store.blobs
        self._budget = store.budget
        self._request_bytes = store.request_bytes
        self._validator = validator
        self._responder = responder
        self._suspects = suspects
        self._clock = clock
        self._is_trusted = is_trusted
        self._keeps_order = keeps_order
        self._tasks: dict[Delivery, asyncio.Task[None]] = {}
        self._lines: dict[bytes, deque[Delivery]] = {}

    def put(self, delivery: Delivery) -> None:
        """Queue a request, now or when it is complete; call the batcher's `pump` after the last of several."""
        if self._lines and (line := self._lines.get(delivery.order_key or b"")) is not None:
            line.append(delivery)
        elif delivery.is_remote:
            self._begin(delivery)
        else:
            self._batcher.put(delivery)

    def run_alone(self, delivery: Delivery) -> None:
        """Run a suspect before anything else, when it is complete."""
        if delivery.is_remote:
            self._fetch_for(delivery, self._batcher.run_alone)
        else:
            self._batcher.run_alone(delivery)

    @property
    def has_room(self) -> bool:
        """Whether more can be taken."""
        return self._batcher.has_room

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for a batch."""
        return self._batcher.waiting_rows

    @property
    def room_rows(self) -> int:
        """How many more rows are to be taken, at least one."""
        return self._batcher.room_rows

    async def wait_for_room(self) -> None:
        """Return when more can be taken."""
        await self._batcher.wait_for_room()

    def drop(self, unwanted: Callable[[Delivery], bool], *, begun: bool = False) -> None:
        """Forget requests that the next owner of their partition will read again, queued ones too."""
        for line in self._lines.values():
            left = [delivery for delivery in line if unwanted(delivery)]
            for delivery in left:
                line.remove(delivery)
                self._forget(delivery)
        for delivery, task in list(self._tasks.items()):
            if unwanted(delivery):
                task.cancel()
        self._batcher.drop(unwanted, begun=begun)

    async def stop(self) -> None:
        """Read nothing more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one request --------------------------------------------------------------------------------------------------

    def _begin(self, delivery: Delivery) -> None:
        key = delivery.order_key
        if self._keeps_order and key:
            self._lines.setdefault(key, deque())
        self._fetch_for(delivery, self._batcher.put)

    def _fetch_for(self, delivery: Delivery, then: Then) -> None:
        task = asyncio.get_running_loop().create_task(self._fetch(delivery, then), name="worker.payload")
        self._tasks[delivery] = task
        task.add_done_callback(lambda task: self._ended(delivery, task))

    def _ended(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Whatever became of a request, those of its key behind it go on."""
        del self._tasks[delivery]
        if task.cancelled():
            self._forget(delivery)
        line = self._lines.get(delivery.order_key or b"")
        while line:
            following = line.popleft()
            if following.is_remote:
                self._begin(following)
                break
            self._batcher.put(following)
        else:
            self._lines.pop(delivery.order_key or b"", None)
        self._batcher.pump()

    async def _fetch(self, delivery: Delivery, then: Then) -> None:
        try:
            fault = await self._read(delivery)
            if fault is None:
                then(delivery)
                return
        except Exception:  # let through, its record would have no outcome for ever
            log.exception("a payload could not be taken")
            fault = Fault(Status.INTERNAL, "the payload could not be taken")
        await self._trust()
        if fault.status is None:
            log.warning("a payload cannot be read: %s", fault.message)
            self._responder.retry(delivery, "payload", fault.message)
        else:
            is_late = fault.status is Status.DEADLINE_EXCEEDED
            self._responder.fail(delivery, fault.status, fault.message, retryable=is_late)
        self._suspects.settled(delivery)

    async def _trust(self) -> None:
        """Return when the lease is trusted; until then another worker may be at it already, and answer OK."""
        while not self._is_trusted():  # noqa: ASYNC110 - a clock says so, and a clock wakes nobody
            await asyncio.sleep(_DOUBT_SECONDS)

    async def _read(self, delivery: Delivery) -> Fault | None:
        """Make a request complete, or say why that cannot be."""
        size = sum(tensor.size for tensor in delivery.inputs if tensor.ref is not None)
        if self._blobs is None:
            return Fault(Status.INVALID, _NO_STORE)
        if size > self._request_bytes:
            text = f"the request's tensors have {size:,} bytes, a slot {self._request_bytes:,}; raise slot_mib"
            return Fault(Status.INVALID, f"{text} in model.yaml")
        await self._budget.take(size)
        pledge = _Pledge(self._budget, size)
        try:
            if delivery.deadline <= self._clock.monotonic():
                return Fault(Status.DEADLINE_EXCEEDED, _EXPIRED)
            read = await self._blobs.restore(delivery.inputs, tenant=tenant_of(delivery.origin))
            inputs = tuple(map(pledge.hold, read, delivery.inputs))
            self._validator.check_content(inputs)
        except (PayloadLost, InvalidRequest) as exc:
            return Fault(Status.INVALID, str(exc))
        except (TransportError, ConfigurationError) as exc:
            return Fault(None, str(exc))
        finally:
            pledge.made()
        metrics.PAYLOADS.labels("read").inc(size)
        delivery.inputs, delivery.is_remote = inputs, False
        return None

    def _forget(self, delivery: Delivery) -> None:
        self._suspects.dropped(delivery)
        forget(delivery)


class _Pledge:
    """A request's share of the budget, given back when the last of its tensors is gone, whoever held them."""

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self._budget = budget
        self._size = size
        self._holders = 1
        self._loop = asyncio.get_running_loop()

    def hold(self, read: Tensor, asked: Tensor) -> Tensor:
        """A tensor that was read, as one that says when it is gone."""
        if asked.ref is None:
            return read
        array = np.frombuffer(read.data, np.uint8)  # unlike bytes it can be watched, and views of it keep it
        self._holders += 1
        weakref.finalize(array, self._gone).atexit = False
        return Tensor(read.name, read.datatype, read.shape, array.data)

    def made(self) -> None:
        """Everything is held that is going to be."""
        self._release()

    def _gone(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._budget.give(self._size)
