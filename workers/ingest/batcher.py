"""Batches: cut when the engine has room, laid into a slot, answered row by row when they come back.

The launcher, which the models of an engine share, says when it is this one's turn. Everything in here is synchronous,
so a batch's life cannot be cut in half by a cancellation; what must wait (Kafka) waits in the publisher.

A completion first launches the next batch and then encodes its own responses, so that the engine works meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from contracts.clock import Clock
from contracts.messages import Receipt, Status
from contracts.specs import BatchingSpec, ModelSpec
from workers.draining.tombstones import Tombstones
from workers.ingest import isolate, metrics
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery
from workers.ingest.launcher import Launch, Launcher
from workers.ingest.layout import Layout
from workers.ingest.policy import Cut, Policy, Wait
from workers.ingest.split import Answering, Answers, forget, is_settled, split
from workers.ingest.suspects import Suspects
from workers.link import Batch, Done, Failed

log = logging.getLogger(__name__)

_EXPIRED = "the time to live ended before a batch took the request"
_HOPELESS = "the time to live would have ended before the result"
_TIMER_TOLERANCE = 0.0002
_FULL = "the worker's queue is full; try again later"


_refused, _late = metrics.DEADLINE_MISSES.labels("refused"), metrics.DEADLINE_MISSES.labels("late")


class _InFlight(NamedTuple):
    deliveries: list[Delivery]
    rows: int
    cut: str

    @property
    def is_alone(self) -> bool:
        """Whether nothing may run beside it."""
        return self.deliveries[0].is_suspect


class Batcher:
    """One model's queue and the batches of it that the engine holds."""

    def __init__(  # noqa: PLR0913 - the parts that it joins
        self,
        spec: ModelSpec,
        launcher: Launcher,
        *,
        clock: Clock,
        responder: Answering,
        send: Callable[[Batch], None],
        is_trusted: Callable[[], bool],
        cancelled: Tombstones,
        suspects: Suspects,
        worker: str,
    ) -> None:
        """`is_trusted` is asked before an error is answered: the engine of a worker in doubt was perhaps killed under
        it, and its next owner may still answer OK. What a worker in doubt cannot answer it drops, uncommitted.
        """
        self._spec = spec
        self._launcher = launcher
        self._slots = launcher.slots
        self._clock = clock
        self._responder = Answers(responder)
        self._send = send
        self._is_trusted = is_trusted
        self._cancelled = cancelled
        self._suspects = suspects
        self._worker = worker
        self._in_flight: dict[int, _InFlight] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = math.inf
        self._arrived_rows = 0
        self._policy = Policy(spec.batching)
        self._layout = Layout(spec)
        self._limit, self._rejects, self._largest = spec.max_queue_rows, False, spec.batching.max_batch_size
        self.queue = BatchQueue(per_key=spec.batching.order == "per_key")
        self._room = asyncio.Event()
        self._room.set()
        self._number = launcher.join(self)
        self.configure(spec.batching)

    def configure(self, knobs: BatchingSpec) -> None:
        """Take new knobs; they hold from the next decision on. Order and padding stay as they were."""
        self._policy.configure(knobs)
        self._limit = knobs.max_queue_rows or 8 * knobs.max_batch_size
        self._rejects = knobs.overflow == "reject"
        self._largest = self._policy.buckets.top
        self.look()

    # --- towards the engine -------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery) -> None:
        """Queue a request; call `pump` after the last of several."""
        if self._rejects and self.queue.rows and self.queue.rows + delivery.rows > self._limit:
            self._responder.fail(delivery, Status.OVERLOADED, _FULL, retryable=True)
            return
        self._arrived_rows += delivery.rows
        for part in split(delivery, self._largest) if delivery.rows > self._largest else (delivery,):
            self.queue.put(part)

    def pump(self) -> None:
        """Launch what can be launched now, of this and every other model."""
        self._launcher.pump()

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for a batch."""
        return self.queue.rows

    @property
    def has_room(self) -> bool:
        """Whether the queue takes more."""
        return self._room.is_set()

    async def wait_for_room(self) -> None:
        """Return when it does."""
        await self._room.wait()

    @property
    def is_waiting(self) -> bool:
        """Whether requests wait for a batch."""
        return bool(self.queue)

    @property
    def has_suspect(self) -> bool:
        """Whether the next to run must have the engine to itself."""
        return self.queue.next_suspect is not None

    def latest_start(self) -> float:
        """When the most urgent of what waits must be launched to be in time."""
        return self.queue.earliest_deadline - self._policy.table.p99(min(self.queue.rows, self._largest))

    def launch_next(self) -> Launch:
        """Launch a batch if one is due."""
        while self.queue and not self._must_wait_for_suspect():
            taken = self._next()
            if isinstance(taken, Launch):
                return taken
            deliveries, reason = taken
            if deliveries and self._launch(deliveries, reason):
                return Launch.DONE
        return Launch.NONE

    def _must_wait_for_suspect(self) -> bool:
        """Nothing runs beside a suspect, and no suspect runs before its launch is journaled."""
        suspect = self.queue.next_suspect
        return suspect is not None and not (self._launcher.is_idle and self._suspects.may_launch(suspect))

    @property
    def in_flight(self) -> list[Delivery]:
        """What the engine has."""
        return [delivery for flight in self._in_flight.values() for delivery in flight.deliveries]

    def run_alone(self, delivery: Delivery) -> None:
        """Run a suspect before anything else."""
        parts = split(delivery, self._largest)
        for part in parts:
            part.lost, part.lost_alone, part.is_watched = delivery.lost, delivery.lost_alone, True
        self.queue.put_groups(isolate.singles(parts))
        self.pump()

    def look(self) -> None:
        """Note what has arrived, and whether the queue takes more."""
        if self._arrived_rows:
            self._policy.arrived(self._clock.monotonic(), self._arrived_rows)
            self._arrived_rows = 0
        if self.queue.rows >= self._limit and not self._rejects:
            self._room.clear()
        elif self.queue.rows <= self._limit // 2 or self._rejects:
            self._room.set()

    def _next(self) -> tuple[list[Delivery], str] | Launch:
        """The next batch and why it is cut; KEPT when it is to be launched later, NONE when there is none to launch."""
        now = self._clock.monotonic()
        group = self.queue.next_group()
        if group is not None:
            return self._living(group, now), "retry"
        engine = self._launcher.engine(now)
        until = math.inf
        for key in self.queue.next_keys(now):
            decision = self._policy.decide(now, self.queue.waiting(key), engine)
            if isinstance(decision, Cut):
                return self._cut(key, decision, now), decision.reason
            if isinstance(decision, Wait):
                until = min(until, decision.until)
        if until < math.inf:
            self._ask_again(now, until)
            return Launch.KEPT
        return Launch.NONE

    def _cut(self, key: Hashable, cut: Cut, now: float) -> list[Delivery]:
        ready, dropped = self.queue.take(key, cut.rows, now, cut.hopeless)
        for delivery in dropped:
            self._refuse_late(delivery, _EXPIRED if delivery.deadline <= now else _HOPELESS)
        return self._living(ready, now)

    def _refuse_late(self, delivery: Delivery, message: str) -> None:
        _refused.inc(delivery.rows)
        self._responder.fail(delivery, Status.DEADLINE_EXCEEDED, message, retryable=True)
        self.queue.settled(delivery)

    def _living(self, deliveries: list[Delivery], now: float) -> list[Delivery]:
        """Answer what expired or was cancelled, return the rest."""
        if not self._cancelled and all(
            d.deadline > now and d.whole is None and d.origin.leg is None for d in deliveries
        ):
            return deliveries
        living = []
        for delivery in deliveries:
            if delivery.deadline <= now:
                self._refuse_late(delivery, _EXPIRED)
            elif is_settled(delivery):
                self.queue.settled(delivery)
            elif delivery.origin.root in self._cancelled:
                self._responder.fail(delivery, Status.CANCELLED, "cancelled by its caller before it ran")
                self.queue.settled(delivery)
            else:
                living.append(delivery)
        return living

    def _ask_again(self, now: float, until: float) -> None:
        """Pump again at `until`; a timer that is set for about then already will do."""
        if self._timer is not None:
            if now < self._wake_at <= until + _TIMER_TOLERANCE:
                return
            self._timer.cancel()
        self._wake_at = until
        self._timer = asyncio.get_running_loop().call_later(max(until - now, 0.0), self.pump)

    def _launch(self, deliveries: list[Delivery], reason: str) -> bool:
        slot, sequence = self._launcher.acquire()
        try:
            laid = self._layout.fill(self._slots.input(slot), deliveries)
        except ValueError:
            self._launcher.release(slot)
            self._too_large(deliveries)
            return False
        now = self._clock.monotonic()
        for delivery in deliveries:
            delivery.launched = now
            delivery.launches += 1
            delivery.batched_us = int((now - delivery.taken) * 1e6)
        rows = sum(delivery.rows for delivery in deliveries)
        self._in_flight[slot] = flight = _InFlight(deliveries, rows, reason)
        self._launcher.launched(slot, self._number, self._policy.table.mean(rows), is_alone=flight.is_alone)
        metrics.BATCH_WAIT.observe(now - deliveries[0].taken)
        metrics.BATCHES.labels(reason).inc()
        metrics.BATCH_ROWS.observe(rows)
        self._suspects.launched(slot, deliveries)  # before the batch leaves, in this turn of the loop
        self._send(Batch(slot, sequence, self._number, laid.rows, laid.regions, deliveries[0].parameters))
        return True

    def _too_large(self, deliveries: list[Delivery]) -> None:
        """A batch that does not fit its slot is halved; a single request that does not can never run here."""
        if len(deliveries) > 1:
            self.queue.put_groups(isolate.halves(deliveries))
            return
        text = f"the request's tensors exceed a slot of {self._slots.input_bytes} bytes; raise slot_mib in model.yaml"
        self._responder.fail(deliveries[0], Status.INVALID, text)
        self.queue.settled(deliveries[0])

    # --- back from the engine -----------------------------------------------------------------------------------------

    def done(self, done: Done) -> None:
        """Answer every request of a batch."""
        flight = self._in_flight.pop(done.slot)
        seconds = done.compute_us / 1e6
        self._policy.finished(self._clock.monotonic(), flight.rows, seconds)
        self.pump()
        metrics.COMPUTE.observe(seconds)
        self._answer(flight, done)
        self._launcher.release(done.slot)
        self.pump()

    def _answer(self, flight: _InFlight, done: Done) -> None:
        outputs = self._layout.outputs(done.outputs, self._slots.output(done.slot), flight.deliveries)
        succeed, device, settled = self._responder.succeed, self._responder.device, self.queue.settled
        now, late = self._clock.monotonic(), 0
        for index, delivery in enumerate(flight.deliveries):
            if delivery.deadline < now:
                late += delivery.rows
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
            try:
                succeed(delivery, tuple(output.part(index, delivery.rows) for output in outputs), receipt)
            except Exception:  # let through, it would leave the rest of the batch without an outcome for ever
                log.exception("a result cannot be encoded")
                self._responder.fail(delivery, Status.INTERNAL, "the result cannot be encoded")
            settled(delivery)
        self._responder.count_successes()
        if flight.is_alone:
            self._suspects.settled(flight.deliveries[0])
        self._policy.answered(now, flight.rows, late)
        if late:
            _late.inc(late)

    def failed(self, failed: Failed) -> None:
        """Find the request that is to blame, or say that the model is."""
        deliveries = self._in_flight.pop(failed.slot).deliveries
        self._launcher.release(failed.slot)
        if not self._is_trusted():
            self._forget(deliveries)
        elif len(deliveries) > 1:
            self.queue.put_groups(isolate.halves(deliveries))
        elif failed.kind == "error":
            self._responder.poison(deliveries[0], f"the model failed on this request alone: {failed.message}")
            self._settle(deliveries[0])
        elif failed.kind == "output":
            self._responder.fail(deliveries[0], Status.INTERNAL, failed.message)
            self._settle(deliveries[0])
        elif deliveries[0].memory_failures == 0:
            deliveries[0].memory_failures = 1  # alone it may fit, now that what ran beside it is done
            self.queue.put_groups([deliveries])
        else:
            self._responder.retry(deliveries[0], "memory", failed.message)
            self._settle(deliveries[0])
        self.pump()

    def _settle(self, delivery: Delivery) -> None:
        self._suspects.settled(delivery)
        self.queue.settled(delivery)

    def engine_lost(self, *, was_alone: bool) -> None:
        """The engine is gone: what it held runs alone next, or has had its chances."""
        flights, self._in_flight = list(self._in_flight.values()), {}
        for flight in reversed(flights):
            if not self._is_trusted():
                self._forget(flight.deliveries)
                continue
            self._suspects.lost(flight.deliveries, is_alone=was_alone and len(flight.deliveries) == 1)
            self._try_alone(flight.deliveries)

    def _try_alone(self, deliveries: list[Delivery]) -> None:
        """Queue suspects, each by itself, and put aside those that had their chances."""
        guilty = [d for d in deliveries if isolate.is_poison(d.lost, d.lost_alone)]
        self.queue.put_groups(isolate.singles([d for d in deliveries if d not in guilty]))
        for delivery in guilty:
            text = (
                f"the engine ended {delivery.lost} times while it ran this request, {delivery.lost_alone} times alone"
            )
            delivery.request.lost = delivery.lost
            self._responder.poison(delivery, text)
            self.queue.settled(delivery)

    def _forget(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._suspects.dropped(delivery)
            forget(delivery)
            self.queue.settled(delivery)

    def drop(self, unwanted: Callable[[Delivery], bool], *, begun: bool = False) -> None:
        """Forget queued requests that the next owner of their partition will read again."""
        for delivery in self.queue.remove(unwanted):
            self._suspects.dropped(delivery)
            forget(delivery)
        self.look()

    def stop(self) -> None:
        """Cut no further batch."""
        if self._timer is not None:
            self._timer.cancel()
