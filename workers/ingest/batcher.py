"""Batches: cut when the engine has room, laid into a slot, answered row by row when they come back.

There is no loop and no timer of its own: `pump` is called when requests arrived, when the engine answered and when the
policy asked to be asked again. Everything in here is synchronous, so a batch's life cannot be cut in half by a
cancellation; what must wait (Kafka) waits in the publisher.

A completion first launches the next batch and then encodes its own responses, so that the engine works meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from contracts.clock import Clock
from contracts.messages import Receipt, Status
from contracts.specs import ModelSpec
from contracts.tensors import BYTES, Tensor, element_offsets
from workers.ingest import isolate, metrics
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery
from workers.ingest.policy import DEPTH, Cut, Wait, decide
from workers.ingest.publisher import Publisher
from workers.ingest.responder import Responder
from workers.ingest.suspects import Suspects
from workers.ingest.tombstones import Tombstones
from workers.link import Batch, Done, Failed, Region
from workers.slots import SlotFile, SlotPool, align

log = logging.getLogger(__name__)

_BIG_TENSOR_BYTES = 4096  # above this one copy per tensor into the slot beats joining them first
_EXPIRED = "the time to live ended before a batch took the request"


class _InFlight(NamedTuple):
    deliveries: list[Delivery]
    rows: int
    cut: str
    number: int

    @property
    def is_alone(self) -> bool:
        """Whether nothing may run beside it."""
        return self.deliveries[0].is_suspect


class Batcher:
    """One model's queue and the batches that its engine holds."""

    def __init__(  # noqa: PLR0913 - the parts that it joins
        self,
        spec: ModelSpec,
        slots: SlotFile,
        *,
        clock: Clock,
        publisher: Publisher,
        responder: Responder,
        send: Callable[[Batch], None],
        may_launch: Callable[[], bool],
        is_trusted: Callable[[], bool],
        cancelled: Tombstones,
        suspects: Suspects,
        worker: str,
    ) -> None:
        """`may_launch` is asked before every launch: engine ready, lease trusted.

        `is_trusted` is asked before an error is answered: the engine of a worker in doubt was perhaps killed under it,
        and its next owner may still answer OK. What a worker in doubt cannot answer it drops, uncommitted.
        """
        self._spec = spec
        self._slots = slots
        self._pool = SlotPool(slots.count)
        self._clock = clock
        self._publisher = publisher
        self._responder = responder
        self._send = send
        self._may_launch = may_launch
        self._is_trusted = is_trusted
        self._cancelled = cancelled
        self._suspects = suspects
        self._worker = worker
        self._in_flight: dict[int, _InFlight] = {}
        self._launched = 0
        self._timer: asyncio.TimerHandle | None = None
        self.queue = BatchQueue()
        self.room = asyncio.Event()
        """Set while the queue takes more."""
        self.room.set()

    # --- towards the engine -------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery) -> None:
        """Queue a request; call `pump` after the last of several."""
        self.queue.put(delivery)

    def pump(self) -> None:
        """Launch what can be launched now."""
        while len(self._in_flight) < DEPTH and self.queue and self._pool.free:
            if not (self._publisher.has_room and self._may_launch()) or self._must_wait_for_suspect():
                break
            taken = self._next()
            if taken is None:
                break
            deliveries, reason = taken
            if deliveries:
                self._launch(deliveries, reason)
        self._tell_room()

    def _must_wait_for_suspect(self) -> bool:
        """Nothing runs beside a suspect, and no suspect runs before its launch is journaled."""
        suspect = self.queue.next_suspect
        if suspect is None:
            return any(flight.is_alone for flight in self._in_flight.values())
        return bool(self._in_flight) or not self._suspects.may_launch(suspect)

    @property
    def running(self) -> int | None:
        """The number of the batch that the engine works on, None when it is idle; it runs the oldest first."""
        return next((flight.number for flight in self._in_flight.values()), None)

    @property
    def in_flight(self) -> list[Delivery]:
        """What the engine has."""
        return [delivery for flight in self._in_flight.values() for delivery in flight.deliveries]

    def run_alone(self, delivery: Delivery) -> None:
        """Run a suspect before anything else."""
        self.queue.put_groups([[delivery]])
        self.pump()

    def _tell_room(self) -> None:
        limit = self._spec.max_queue_rows
        if self.queue.rows >= limit:
            self.room.clear()
        elif self.queue.rows <= limit // 2:
            self.room.set()

    def _next(self) -> tuple[list[Delivery], str] | None:
        """The next batch and why it is cut; None when nothing is to be launched yet."""
        now = self._clock.monotonic()
        group = self.queue.next_group()
        if group is not None:
            return self._living(group, now), "retry"
        key = self.queue.oldest_key()
        rows, oldest = self.queue.head(key)
        decision = decide(now, rows, oldest, len(self._in_flight), self._spec.batching)
        if isinstance(decision, Cut):
            ready, expired = self.queue.take(key, decision.rows, now)
            for delivery in expired:
                self._responder.fail(delivery, Status.DEADLINE_EXCEEDED, _EXPIRED, retryable=True)
            return self._living(ready, now), decision.reason
        if isinstance(decision, Wait):
            self._ask_again(decision.until - now)
        return None

    def _living(self, deliveries: list[Delivery], now: float) -> list[Delivery]:
        """Answer what expired or was cancelled, return the rest."""
        if not self._cancelled and all(delivery.deadline > now for delivery in deliveries):
            return deliveries
        living = []
        for delivery in deliveries:
            if delivery.deadline <= now:
                self._responder.fail(delivery, Status.DEADLINE_EXCEEDED, _EXPIRED, retryable=True)
            elif delivery.origin.request_id in self._cancelled:
                self._responder.fail(delivery, Status.CANCELLED, "cancelled by its caller before it ran")
            else:
                living.append(delivery)
        return living

    def _ask_again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), self.pump)

    def _launch(self, deliveries: list[Delivery], reason: str) -> None:
        acquired = self._pool.acquire()
        assert acquired is not None  # noqa: S101 - pump looked, and nothing awaits in between
        slot, sequence = acquired
        try:
            regions = self._fill(self._slots.input(slot), deliveries)
        except ValueError:
            self._pool.release(slot)
            self._too_large(deliveries)
            return
        now = self._clock.monotonic()
        for delivery in deliveries:
            delivery.launched = now
            delivery.launches += 1
            delivery.batched_us = int((now - delivery.taken) * 1e6)
        rows = sum(delivery.rows for delivery in deliveries)
        self._launched += 1
        self._in_flight[slot] = _InFlight(deliveries, rows, reason, self._launched)
        metrics.BATCHES.labels(reason).inc()
        metrics.BATCH_ROWS.observe(rows)
        self._suspects.launched(slot, deliveries)  # before the batch leaves, in this turn of the loop
        self._send(Batch(slot, sequence, 0, rows, regions, deliveries[0].parameters))

    def _fill(self, region: memoryview, deliveries: Sequence[Delivery]) -> tuple[Region, ...]:
        """Lay the rows of all deliveries into a slot. Raises ValueError when they do not fit."""
        regions, offset = [], 0
        rows = sum(delivery.rows for delivery in deliveries)
        for index, tensor in enumerate(deliveries[0].inputs):
            parts = [delivery.inputs[index].data for delivery in deliveries]
            start, offset = offset, _copy(region, offset, parts)
            shape = (rows, *tensor.shape[1:])
            regions.append(Region(tensor.name, tensor.datatype, shape, start, offset - start))
            offset = align(offset)
        return tuple(regions)

    def _too_large(self, deliveries: list[Delivery]) -> None:
        """A batch that does not fit its slot is halved; a single request that does not can never run here."""
        if len(deliveries) > 1:
            self.queue.put_groups(isolate.halves(deliveries))
            return
        text = f"the request's tensors exceed a slot of {self._slots.input_bytes} bytes; raise slot_mib in model.yaml"
        self._responder.fail(deliveries[0], Status.INVALID, text)

    # --- back from the engine -----------------------------------------------------------------------------------------

    def done(self, done: Done) -> None:
        """Answer every request of a batch."""
        flight = self._landed(done)
        if flight is None:
            return
        self.pump()
        metrics.COMPUTE.observe(done.compute_us / 1e6)
        self._answer(flight, done)
        self._pool.release(done.slot)
        self.pump()

    def _landed(self, answer: Done | Failed) -> _InFlight | None:
        """The batch that an answer belongs to; None for an answer to an earlier use of the slot."""
        if not self._pool.is_current(answer.slot, answer.sequence):
            return None
        return self._in_flight.pop(answer.slot, None)

    def _answer(self, flight: _InFlight, done: Done) -> None:
        outputs = [_Output(region, self._slots.output(done.slot), flight) for region in done.outputs]
        succeed, device = self._responder.succeed, self._responder.device
        now = self._clock.monotonic()
        for index, delivery in enumerate(flight.deliveries):
            receipt = Receipt(
                worker=self._worker,
                device=device,
                attempt=delivery.origin.attempt,
                batch_rows=flight.rows,
                cut=flight.cut,
                queued_us=delivery.queued_us,
                batched_us=delivery.batched_us,
                computed_us=int((now - delivery.launched) * 1e6),
            )
            succeed(delivery, tuple(output.part(index, delivery.rows) for output in outputs), receipt)
        self._responder.count_successes()
        if flight.is_alone:
            self._suspects.settled(flight.deliveries[0])

    def failed(self, failed: Failed) -> None:
        """Find the request that is to blame, or say that the model is."""
        flight = self._landed(failed)
        if flight is None:
            return
        self._pool.release(failed.slot)
        deliveries = flight.deliveries
        if not self._is_trusted():
            self._drop(deliveries)
        elif len(deliveries) > 1:
            self.queue.put_groups(isolate.halves(deliveries))
        elif failed.kind == "error":
            self._suspects.settled(deliveries[0])
            self._responder.poison(deliveries[0], f"the model failed on this request alone: {failed.message}")
        elif failed.kind == "memory" and deliveries[0].memory_failures == 0:
            deliveries[0].memory_failures = 1  # alone it may fit, now that what ran beside it is done
            self.queue.put_groups([deliveries])
        else:
            self._suspects.settled(deliveries[0])
            if failed.kind == "memory":
                self._responder.retry(deliveries[0], "memory", failed.message)
            else:
                self._responder.fail(deliveries[0], Status.INTERNAL, failed.message)
        self.pump()

    def engine_lost(self) -> None:
        """The engine is gone: what it held runs alone next, or has had its chances."""
        flights, self._in_flight = list(self._in_flight.values()), {}
        self._pool = SlotPool(self._slots.count)
        for flight in reversed(flights):
            if not self._is_trusted():
                self._drop(flight.deliveries)
                continue
            self._suspects.lost(flight.deliveries, is_alone=len(flight.deliveries) == len(flights) == 1)
            self._run_alone(flight.deliveries)

    def _run_alone(self, deliveries: list[Delivery]) -> None:
        """Queue suspects, each by itself, and put aside those that had their chances."""
        guilty = [d for d in deliveries if isolate.is_poison(d.lost, d.lost_alone)]
        self.queue.put_groups(isolate.singles([d for d in deliveries if d not in guilty]))
        for delivery in guilty:
            text = (
                f"the engine ended {delivery.lost} times while it ran this request, {delivery.lost_alone} times alone"
            )
            self._responder.poison(delivery, text)

    def refuse_all(self, status: Status, message: str) -> None:
        """Answer everything that waits with an error."""
        for delivery in self.queue.remove(lambda _: True):
            self._responder.fail(delivery, status, message, retryable=True)
        self._tell_room()

    def _drop(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._suspects.dropped(delivery)
            delivery.origin.claim.dropped()

    def drop(self, unwanted: Callable[[Delivery], bool]) -> None:
        """Forget queued requests that the next owner of their partition will read again."""
        self._drop(self.queue.remove(unwanted))
        self._tell_room()

    def stop(self) -> None:
        """Cut no further batch."""
        if self._timer is not None:
            self._timer.cancel()


class _Output:
    """One output tensor of a batch, cut into the requests' parts as views."""

    __slots__ = ("_offsets", "_region", "_view")

    def __init__(self, region: Region, slot: memoryview, flight: _InFlight) -> None:
        self._region = region
        self._view = slot[region.offset : region.offset + region.size]
        counts = [delivery.rows for delivery in flight.deliveries]
        if region.datatype == BYTES:
            per_row = _product(region.shape[1:])
            self._offsets = element_offsets(self._view, [count * per_row for count in counts])
        else:
            row_bytes = region.size // flight.rows
            self._offsets = [0]
            for count in counts:
                self._offsets.append(self._offsets[-1] + count * row_bytes)

    def part(self, index: int, rows: int) -> Tensor:
        """The tensor of the batch's request number `index`, which has `rows` rows."""
        region = self._region
        data = self._view[self._offsets[index] : self._offsets[index + 1]]
        return Tensor(region.name, region.datatype, (rows, *region.shape[1:]), data)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _copy(region: memoryview, offset: int, parts: Sequence[memoryview]) -> int:
    """Copy parts one behind the other into a region; returns the end. Raises ValueError when they do not fit."""
    if len(parts[0]) < _BIG_TENSOR_BYTES:
        joined = b"".join(parts)
        end = offset + len(joined)
        region[offset:end] = joined
        return end
    for part in parts:
        end = offset + len(part)
        region[offset:end] = part
        offset = end
    return offset
