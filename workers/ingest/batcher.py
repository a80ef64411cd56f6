"""Batches: cut when the engine has room, laid into a slot, answered row by row when they come back.

The launcher, which the models of an engine share, says when it is this one's turn. Everything in here is synchronous,
so a batch's life cannot be cut in half by a cancellation; what must wait (Kafka) waits in the publisher.

A completion first launches the next batch and then encodes its own responses, so that the engine works meanwhile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence

from contracts.clock import Clock
from contracts.messages import Status
from contracts.serving_specs import BatchingSpec
from contracts.specs import ModelSpec
from workers.draining.tombstones import Tombstones
from workers.ingest import isolate, metrics
from workers.ingest.alarm import Alarm
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery
from workers.ingest.failures import Failures
from workers.ingest.flight import Flight
from workers.ingest.gate import Gate
from workers.ingest.launcher import Launch, Launcher
from workers.ingest.layout import Layout
from workers.ingest.policy import Cut, Policy, Wait
from workers.ingest.room import Room
from workers.ingest.split import Answering, Answers, forget, is_settled, split
from workers.ingest.streams import Streams
from workers.ingest.suspects import Suspects
from workers.link import Batch, Continue, Done, Failed, Forget, Part, Timing

log = logging.getLogger(__name__)

_EXPIRED = "the time to live ended before a batch took the request"
_HOPELESS = "the time to live would have ended before the result"
_FULL = "the worker's queue is full; try again later"

_refused, _late = metrics.DEADLINE_MISSES.labels("refused"), metrics.DEADLINE_MISSES.labels("late")


class Batcher:
    """One model's queue and the batches of it that the engine holds."""

    def __init__(  # noqa: PLR0913 - the parts that it joins
        self,
        spec: ModelSpec,
        launcher: Launcher,
        *,
        clock: Clock,
        responder: Answering,
        send: Callable[[Batch | Continue | Forget], None],
        is_trusted: Callable[[], bool],
        cancelled: Tombstones,
        suspects: Suspects,
        worker: str,
    ) -> None:
        """`is_trusted` is asked before an error is answered; in doubt it waits, since a next owner may answer OK."""
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
        self._in_flight: dict[int, Flight] = {}
        self._alarm = Alarm(launcher.pump)
        self._arrived_rows = 0
        self._is_stale = False
        self._policy = Policy(spec.batching)
        self._layout = Layout(spec)
        self.room = Room()
        """For requests that wait."""
        self.queue = BatchQueue(per_key=spec.keeps_order)
        self._gate = Gate(spec.sequences, clock=clock, answers=responder, settle=self._settle, cancelled=cancelled)
        self._failures = Failures(
            spec, queue=self.queue, policy=self._policy, answers=self._responder, suspects=suspects, settle=self._settle
        )
        self._streams = Streams(
            slots=self._slots,
            clock=clock,
            responder=responder,
            send=send,
            is_trusted=is_trusted,
            cancelled=cancelled,
            settle=self._settle,
            worker=worker,
        )
        self.pump = launcher.pump
        self._number = launcher.join(self)
        self.configure(spec.batching)

    def configure(self, knobs: BatchingSpec) -> None:
        """Take new knobs; they hold from the next decision on. Order and padding stay as they were."""
        self._policy.configure(knobs)
        limit = knobs.max_queue_rows or 8 * knobs.max_batch_size
        self.room.configure(limit, knobs.max_batch_size, rejects=knobs.overflow == "reject")
        self.look()

    # --- towards the engine -------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery) -> None:
        """Queue a request; call `pump` after the last of several."""
        if self.room.rejects and self.room.refuses(self.queue.rows, delivery.rows, delivery.origin.claim.lane):
            self._responder.fail(delivery, Status.OVERLOADED, _FULL, retryable=True)
            return
        self._arrived_rows += delivery.rows
        largest = self._policy.largest
        for part in split(delivery, largest) if delivery.rows > largest else (delivery,):
            self.queue.put(part)

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for a batch."""
        return self.queue.rows

    @property
    def has_room(self) -> bool:
        """Whether the queue takes more."""
        return self.room.is_open()

    async def wait_for_room(self) -> None:
        """Return when it does."""
        await self.room.wait()

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
        return self.queue.earliest_deadline - self._policy.table.p99(min(self.queue.rows, self._policy.largest))

    def launch_next(self) -> Launch:
        """Launch a batch if one is due."""
        while self.queue and not self._must_wait_for_suspect():
            taken = self._next()
            if isinstance(taken, Launch):
                return taken
            deliveries, reason = taken
            if self._gate.is_shut:
                deliveries = self._gate.admitted(deliveries, self.in_flight)
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
        return [delivery for flight in self._in_flight.values() for delivery in flight.open]

    def run_alone(self, delivery: Delivery) -> None:
        """Run a suspect before anything else."""
        parts = split(delivery, self._policy.largest)
        for part in parts:
            part.lost, part.lost_alone, part.is_watched = delivery.lost, delivery.lost_alone, True
        self.queue.put_groups(isolate.singles(parts))
        self.pump()

    @property
    def room_rows(self) -> int:
        """How many more rows the queue is to have, at least one."""
        return self.room.left(self.queue.rows)

    def look(self) -> None:
        """Note what has arrived, say whether the queue takes more, and let streams go on that had no room."""
        if self._arrived_rows:
            self._policy.arrived(self._clock.monotonic(), self._arrived_rows)
            self._arrived_rows = 0
        self._streams.resume()
        if self.queue.rows >= self.room.looks_from:
            self.room.look(self.queue.rows, is_stale=self._is_stale)

    def _next(self) -> tuple[list[Delivery], str] | Launch:
        """The next batch and why it is cut; KEPT when it is to be launched later, NONE when there is none to launch."""
        now = self._alarm.moment(self._clock.monotonic())
        group = self.queue.next_group()
        if group is not None:
            return self._living(group, now), "retry"
        engine = self._launcher.engine(now, self._responder.way_back_seconds)
        until = math.inf
        for key in self.queue.next_keys(now):
            decision = self._policy.decide(now, self.queue.waiting(key), engine)
            if isinstance(decision, Wait) and self._refuse_all(self.queue.refuse(key, decision.hopeless), now):
                decision = self._policy.decide(now, self.queue.waiting(key), engine)
            if isinstance(decision, Cut):
                return self._cut(key, decision, now), decision.reason
            if isinstance(decision, Wait):
                until = min(until, decision.until)
        if until < math.inf:
            self._alarm.set(now, until)
            return Launch.KEPT
        return Launch.NONE

    def _cut(self, key: Hashable, cut: Cut, now: float) -> list[Delivery]:
        ready, dropped = self.queue.take(key, cut.rows, now, cut.hopeless)
        self._is_stale = False
        if dropped:
            self._refuse_all(dropped, now)
        return self._living(ready, now)

    def _refuse_all(self, dropped: Sequence[Delivery], now: float) -> bool:
        """Answer those that cannot be in time; whether there were any."""
        self._is_stale = bool(dropped)
        for delivery in dropped:
            self._refuse_late(delivery, _EXPIRED if delivery.deadline <= now else _HOPELESS)
        return self._is_stale

    def _refuse_late(self, delivery: Delivery, message: str) -> None:
        _refused.inc(delivery.rows)
        self._responder.fail(delivery, Status.DEADLINE_EXCEEDED, message, retryable=True)
        self._settle(delivery)

    def _living(self, deliveries: list[Delivery], now: float) -> list[Delivery]:
        """Answer what expired or was cancelled, return the rest."""
        is_plain = not self._cancelled
        for delivery in deliveries:
            is_plain &= delivery.deadline > now and delivery.whole is None and delivery.origin.leg is None
        if is_plain:
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

    def _launch(self, deliveries: list[Delivery], reason: str) -> bool:
        slot, sequence = self._launcher.acquire()
        try:
            laid = self._layout.fill(self._slots.input(slot), deliveries)
        except ValueError:
            self._launcher.release(slot)
            self._failures.too_large(deliveries, self._slots.input_bytes)
            return False
        steps = self._gate.steps(deliveries) if self._gate.is_shut else ()
        now, rows = self._clock.monotonic(), 0
        self._send(Batch(slot, sequence, self._number, laid.rows, laid.regions, deliveries[0].parameters, steps))
        # In the same turn of the loop, but behind the batch: what waits for all this to be noted is the engine.
        for delivery in deliveries:
            rows += delivery.rows
            delivery.launched = now
            delivery.launches += 1
            delivery.batched_us = int((now - delivery.taken) * 1e6)
        stream = self._streams.begin(deliveries, laid.rows) if self._spec.streaming else None
        self._in_flight[slot] = flight = Flight(deliveries, rows, reason, stream)
        self._launcher.launched(slot, self._number, now, self._policy.table.mean(rows), is_alone=flight.is_alone)
        self._suspects.launched(slot, deliveries)
        metrics.BATCH_WAIT.observe(now - deliveries[0].taken)
        metrics.BATCHES.labels(reason).inc()
        metrics.BATCH_ROWS.observe(rows)
        return True

    # --- back from the engine -----------------------------------------------------------------------------------------

    def done(self, done: Done, now: float, *, is_awaited: bool) -> None:
        """Answer every request of a batch."""
        flight = self._in_flight.pop(done.slot)
        if self._gate.is_shut:
            self._gate.ran(flight.open)
        if is_awaited:  # the engine comes first, and what it took decides about the next batch
            self._learn(flight, done, now)
            self.pump()
        if flight.stream is None:
            self._answer(flight, done, now)
        else:
            self._streams.finish(flight, done)
        self._responder.batch_answered()  # which begins the sending
        if not is_awaited:  # nobody waited but those who asked for this
            self._learn(flight, done, now)
        if flight.stream is None:
            self._count_late(flight, now)
        self._launcher.release(done.slot)
        self.pump()

    def _learn(self, flight: Flight, done: Done, now: float) -> None:
        seconds = done.compute_us / 1e6
        if flight.stream is None:  # how long one caller's stream was says nothing about the next one's
            self._policy.finished(now, flight.rows, seconds)
        metrics.COMPUTE.observe(seconds)

    def part(self, part: Part) -> None:
        """Send a part to each request that it is for; the engine goes on when there is room for more."""
        flight = self._in_flight[part.slot]
        if flight.stream is not None:
            self._streams.part(flight, part)
            self.pump()

    def is_held(self, slot: int) -> bool:
        """Whether the engine waits with the batch in a slot until its part was taken."""
        return self._in_flight[slot].is_held

    async def sweep_loop(self) -> None:
        """Have the engine forget sequences that are over, until cancelled."""
        await self._gate.sweep_loop(self._send, self._number)

    def _answer(self, flight: Flight, done: Done, now: float) -> None:
        results = self._layout.results(done.outputs, self._slots.output(done.slot), flight.deliveries)
        succeed, device, settled = self._responder.succeed, self._responder.device, self.queue.settled
        for delivery, outputs in zip(flight.deliveries, results, strict=True):
            receipt = flight.receipt(delivery, now, self._worker, device)
            try:
                succeed(delivery, outputs, receipt)
            except Exception:  # let through, it would leave the rest of the batch without an outcome for ever
                log.exception("a result cannot be encoded")
                self._responder.fail(delivery, Status.INTERNAL, "the result cannot be encoded")
            settled(delivery)
        if flight.is_alone:
            self._suspects.settled(flight.deliveries[0])

    def _count_late(self, flight: Flight, now: float) -> None:
        """Have the policy learn how many of the answers given at `now` came late."""
        late = flight.late_rows(now + self._responder.way_back_seconds)
        self._policy.answered(now, flight.rows, late)
        if late:
            _late.inc(late)

    def failed(self, failed: Failed) -> None:
        """Find the request that is to blame, or say that the model is."""
        flight = self._in_flight.pop(failed.slot)
        self._launcher.release(failed.slot)
        if failed.kind == "memory" and flight.rows > 1:
            self._failures.out_of_memory(flight.rows)
        if flight.open and self._is_trusted():
            self._failures.failed(flight, failed)
        else:
            self._put_back(flight.open)
        self.pump()

    def _settle(self, delivery: Delivery) -> None:
        self._suspects.settled(delivery)
        self.queue.settled(delivery)

    def timed(self, timings: Sequence[Timing]) -> None:
        """Predict from what the engine measured, until real batches say more."""
        self._policy.seed({timing.rows: timing.seconds for timing in timings})

    def engine_lost(self, *, was_alone: bool) -> None:
        """The engine is gone: what it held runs alone next, or has had its chances."""
        flights, self._in_flight = [flight for flight in self._in_flight.values() if flight.open], {}
        self._streams.engine_lost()
        self._gate.engine_lost()
        for flight in reversed(flights):
            if self._is_trusted():
                self._suspects.lost(flight.open, is_alone=was_alone and len(flight.deliveries) == 1)
                self._failures.try_alone(flight.open)
            else:
                self._put_back(flight.open)

    def _put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Have them run once more, if their partitions stay: nobody else would read them again."""
        for delivery in deliveries:
            self._suspects.dropped(delivery)
            if delivery.origin.claim.giving:
                forget(delivery)
                self.queue.settled(delivery)
        self.queue.put_groups([[d for d in deliveries if not d.origin.claim.giving]])

    def drop(self, unwanted: Callable[[Delivery], bool], *, begun: bool = False) -> None:
        """Forget queued requests that the next owner of their partition will read again."""
        for delivery in self.queue.remove(unwanted):
            self._suspects.dropped(delivery)
            forget(delivery)
        self.look()

    def expire(self) -> None:
        """Answer what has waited in vain for an engine."""
        now = self._clock.monotonic()
        if self._is_trusted() and self._refuse_all(self.queue.expired(now), now):
            self.look()

    def stop(self) -> None:
        """Cut no further batch."""
        self._alarm.cancel()
