"""The engine as ingest sees it: which slots its batches stand in, how much it has in hand, and whose turn is next.

An engine runs one batch and has one ready, whatever number of models it holds, so they share its three slots and its
depth of two. Each model has its own batcher, which decides when to cut and how much; `pump` asks them in the order of
`turns` until the engine has enough. A model that would rather wait for more rows while a batch runs keeps its turn:
others would otherwise take the ready place again and again, and it would never get in. A suspect of any model has the
engine to itself.

There is no loop here and no timer: `pump` is called when requests arrived, when the engine answered and when a policy
asked to be asked again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import compress, count
from typing import Protocol

import msgspec

from contracts.clock import Clock
from workers.ingest.handover import Handover
from workers.ingest.policy import DEPTH, Engine
from workers.ingest.turns import Claimant, Turns
from workers.link import Done, Failed, Part, Timing
from workers.slots import SlotFile, SlotPool


class Launch(Enum):
    """What a batcher did with its turn."""

    DONE = 0
    NONE = 1
    KEPT = 2
    """Nothing yet, but soon: the ready place is to be left to it."""


class Launching(Protocol):
    """One model's batches, as far as the launcher needs them."""

    @property
    def is_waiting(self) -> bool:
        """Whether requests wait for a batch."""

    @property
    def has_suspect(self) -> bool:
        """Whether the next to run must have the engine to itself."""

    def latest_start(self) -> float:
        """When the most urgent of what waits must be launched to be in time, in monotonic seconds."""

    def launch_next(self) -> Launch:
        """Launch a batch if one is due."""

    def look(self) -> None:
        """Note what has arrived, and whether the queue takes more."""

    def part(self, part: Part) -> None:
        """The engine has a part of the answer to one of its batches, and waits."""

    def is_held(self, slot: int) -> bool:
        """Whether the engine waits with the batch in a slot until its part was taken."""

    def done(self, done: Done, now: float, *, is_awaited: bool) -> None:
        """The engine has computed one of its batches, and requests wait for it if it `is_awaited`."""

    def failed(self, failed: Failed) -> None:
        """The engine could not compute one of its batches."""

    def expire(self) -> None:
        """There is no engine; answer those who cannot wait for one any longer."""

    def timed(self, timings: Sequence[Timing]) -> None:
        """The engine has measured batches of several sizes."""

    def engine_lost(self, *, was_alone: bool) -> None:
        """The engine is gone with all its batches; `was_alone` when it had but one."""


_is_waiting = operator.attrgetter("is_waiting")


class _Flight(msgspec.Struct, gc=False):
    """A batch that the engine has: when it was sent, whether to an idle engine, and when it should be back."""

    model: int
    number: int
    seconds: float
    is_alone: bool
    launched: float
    was_idle: bool
    ends: float


class Launcher:
    """One engine's slots and turns."""

    def __init__(self, slots: SlotFile, clock: Clock, may_launch: Callable[[], bool]) -> None:
        """`may_launch` is asked before every launch: engine ready, lease trusted, room for responses."""
        self.slots = slots
        self._clock = clock
        self._may_launch = may_launch
        self._pool = SlotPool(slots.count)
        self._turns = Turns()
        self._models: list[Launching] = []
        self._flights: dict[int, _Flight] = {}
        self._launched = 0
        self._handover = Handover()
        self._is_pumping = self._pump_again = False

    def join(self, batches: Launching) -> int:
        """One more model; its number, which is its place in the engine's Load."""
        self._models.append(batches)
        return self._turns.join()

    # --- what the engine has ------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether the engine has nothing at all."""
        return not self._flights

    @property
    def is_waiting(self) -> bool:
        """Whether any model's requests wait for a batch."""
        return any(map(_is_waiting, self._models))

    @property
    def running(self) -> tuple[int, int] | None:
        """Model and number of the step that the engine works on, None when it is idle or waits for us; it runs the
        oldest batch first.
        """
        slot, flight = next(iter(self._flights.items()), (0, None))
        if flight is None or self._models[flight.model].is_held(slot):
            return None
        return flight.model, flight.number

    def model_in(self, slot: int) -> int | None:
        """Whose batch the engine has in a slot."""
        flight = self._flights.get(slot)
        return None if flight is None else flight.model

    def engine(self, now: float, way_back: float = 0.0) -> Engine:
        """How much the engine has in hand, and when it is expected to be free; answers travel `way_back` seconds."""
        flights, handover = self._flights, self._handover
        if not flights:
            return Engine(0, 0.0, way_back, handover.seconds)
        wait = max(flight.ends for flight in flights.values()) - now
        return Engine(len(flights), wait, way_back, handover.seconds, handover.lead)

    # --- towards the engine -------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Launch what can be launched now. A call from within has the outer one look again."""
        self._pump_again = True
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while self._pump_again:
                self._pump_again = False
                while self._launch_one():
                    pass
                for batches in self._models:  # behind the launch: the engine need not wait for what is noted here
                    batches.look()
        finally:
            self._is_pumping = False

    def _has_place(self) -> bool:
        flights = self._flights
        if flights and (len(flights) >= DEPTH or any(flight.is_alone for flight in flights.values())):
            return False
        return self._pool.free > 0 and self._may_launch()

    def _launch_one(self) -> bool:
        """If there is a place, let the models have their turns until one launches; False when none does."""
        waiting = [*compress(count(), map(_is_waiting, self._models))]
        if not waiting or not self._has_place():
            return False
        if len(waiting) > 1:
            waiting = self._in_turn(waiting)
        for model in waiting:
            launch = self._models[model].launch_next()
            if launch is Launch.DONE:
                return True
            if launch is Launch.KEPT and self._flights:
                return False
        return False

    def _in_turn(self, waiting: list[int]) -> list[int]:
        suspect = next((model for model in waiting if self._models[model].has_suspect), None)
        if suspect is not None:
            return [suspect]
        now = self._clock.monotonic()
        longest = max((flight.seconds for flight in self._flights.values()), default=0.0)
        horizon = now + max(0.0, self.engine(now).wait) + longest
        return self._turns.order([Claimant(model, self._models[model].latest_start()) for model in waiting], horizon)

    def acquire(self) -> tuple[int, int]:
        """A free slot and the number of this use; for a batcher that has its turn."""
        acquired = self._pool.acquire()
        assert acquired is not None  # noqa: S101 - the pump looked, and nothing awaits in between
        return acquired

    def release(self, slot: int) -> None:
        """What stood in a slot is not needed any more."""
        self._pool.release(slot)

    def launched(self, slot: int, model: int, now: float, seconds: float, *, is_alone: bool) -> None:
        """A batch is sent; it is expected to take so long."""
        self._launched += 1
        begins = now + self._handover.seconds
        if was_busy := bool(self._flights):
            begins = max(begins, *(flight.ends for flight in self._flights.values()))
        flight = _Flight(model, self._launched, seconds, is_alone, now, not was_busy, begins + seconds)
        self._flights[slot] = flight
        self._turns.charge(model, seconds)

    # --- back from the engine -----------------------------------------------------------------------------------------

    def part(self, part: Part) -> None:
        """A part of a batch's answer is in its slot; what the engine does then is another step."""
        flight = self._flights.get(part.slot)
        if flight is not None and self._pool.is_current(part.slot, part.sequence):
            self._launched += 1
            flight.number = self._launched
            self._models[flight.model].part(part)

    def done(self, done: Done) -> int | None:
        """A batch's outputs are in its slot; whose batch it was, None for an answer to an earlier use of the slot."""
        now = self._clock.monotonic()
        flight = self._landed(done, now)
        if flight is None:
            return None
        is_awaited = self.is_waiting
        if is_awaited:  # the next batch is decided with what this one took
            self._learn(flight, now, done)
        self._models[flight.model].done(done, now, is_awaited=is_awaited)
        if not is_awaited:
            self._learn(flight, now, done)
        return flight.model

    def failed(self, failed: Failed) -> None:
        """A batch has no outputs."""
        flight = self._landed(failed, self._clock.monotonic())
        if flight is not None:
            self._models[flight.model].failed(failed)

    def _landed(self, answer: Done | Failed, now: float) -> _Flight | None:
        """The batch that an answer belongs to; None for an answer to an earlier use of the slot."""
        if not self._pool.is_current(answer.slot, answer.sequence):
            return None
        flight, ends = self._flights.pop(answer.slot, None), now
        for other in self._flights.values():
            other.ends = ends = max(ends, other.launched + self._handover.seconds) + other.seconds
        return flight

    def _learn(self, flight: _Flight, now: float, done: Done) -> None:
        computed = done.compute_us / 1e6
        self._turns.correct(flight.model, computed - flight.seconds)
        if not flight.seconds:  # nobody knew how long it would take
            return
        self._handover.ended(now - flight.ends)
        if flight.was_idle:
            self._handover.took(now - flight.launched - computed)

    def timed(self, timings: Sequence[Sequence[Timing]]) -> None:
        """An engine has measured its models."""
        for batches, measured in zip(self._models, timings, strict=False):
            batches.timed(measured)

    def engine_lost(self) -> None:
        """The engine is gone, and with it every batch in it."""
        was_alone = len(self._flights) == 1
        self._flights.clear()
        self._pool = SlotPool(self.slots.count)
        for batches in self._models:
            batches.engine_lost(was_alone=was_alone)

    def expire(self) -> None:
        """Answer requests whose time is over; to be called now and then while there is no engine: no cut says so."""
        for batches in self._models:
            batches.expire()
