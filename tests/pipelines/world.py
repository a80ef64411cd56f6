"""A fleet without processes: a log with partitions, workers and joiners on a virtual clock, and everything that happens
to them. One seed is one history, to the last event.

Workers answer after a while, sometimes twice. Records are appended late, and acknowledged later still. Joiners die
between any two of their acts, or go on for a while beside their successors; what they had sent may or may not arrive;
their commits land whenever they like, also lower than what stands there.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from contracts.advance import advance, fire, is_ready, start
from contracts.messages import Hop, RequestHeaders, Status
from contracts.names import ModelVersion
from contracts.parts import MarkerBody, PartHeaders, PartKind, joins_partition
from contracts.plans import Answer, Ask, Emission, Failure, Outcome, Part, Plan
from contracts.tensors import Tensor
from workers.draining.offsets import Arrival as OffsetArrival
from workers.draining.offsets import OffsetTracker
from workers.joiner.join import Arrival, Fire, JoinKey, Mark, Why
from workers.joiner.table import JoinTable

Model = Callable[[ModelVersion, Sequence[Tensor]], Outcome]
START_MS = 1_000_000


class LogRecord(NamedTuple):
    """A part or a marker."""

    appended_ms: int
    headers: PartHeaders
    part: Part | None
    marker: MarkerBody | None
    plan: Plan


@dataclass
class Faults:
    """How bad it gets."""

    crash_every_ms: int = 0
    """Mean time between deaths of a partition's joiner; 0: none."""
    repeat: float = 0.0
    """How often a step runs twice."""
    lose_in_flight: float = 0.5
    """Of a dead joiner's unacknowledged records."""
    hang: Callable[[ModelVersion], bool] = field(default=lambda _: False)
    """Models that never answer."""


class World:
    """The log, the workers and the clock."""

    def __init__(self, seed: int, model: Model, *, partitions: int = 2, faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.model = model
        self.faults = faults or Faults()
        self.now = START_MS
        self.log: list[list[LogRecord]] = [[] for _ in range(partitions)]
        self.committed = [0] * partitions
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.fires = 0
        self.violations: list[str] = []
        self.deadlines: dict[str, int] = {}
        self._checked = [0] * partitions
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = itertools.count()

    # --- time ---------------------------------------------------------------------------------------------------------

    def after(self, milliseconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + int(milliseconds), next(self._sequence), act))

    def some(self, low: float, high: float) -> float:
        """A while: mostly near the lower end, now and then long."""
        return low + (high - low) * self.random.random() ** 3

    def run_until(self, time_ms: int) -> None:
        while self._events and self._events[0][0] <= time_ms:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = time_ms

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, job: str, plan: Plan, inputs: Sequence[Tensor], *, ttl_ms: int) -> None:
        self.deadlines[job] = self.now + ttl_ms
        for emission in start(plan, inputs, {}):
            self.carry_out(job, plan, emission)

    def carry_out(self, job: str, plan: Plan, emission: Emission, done: Callable[[], None] | None = None) -> None:
        """An emission is on its way; `done` when it is acknowledged."""
        if isinstance(emission, Part):
            self._append_part(job, plan, emission, done)
            return
        if isinstance(emission, Ask):
            self.after(self.some(1, 300), lambda: self._run(job, plan, emission))
            if self.random.random() < self.faults.repeat:
                self.after(self.some(300, 5_000), lambda: self._run(job, plan, emission))
        else:
            self.answers[job].append(emission)
        if done is not None:
            self.after(self.some(1, 50), done)

    def _run(self, job: str, plan: Plan, ask: Ask) -> None:
        if self.faults.hang(ask.model):
            return
        outcome = self.model(ask.model, ask.inputs)
        for emission in advance(plan, ask.node, ask.branch, outcome, ask.carried):
            self.carry_out(job, plan, emission)

    def _append_part(self, job: str, plan: Plan, part: Part, done: Callable[[], None] | None) -> None:
        hop = Hop(job, plan.digest, str(plan.pipeline), part.join, part.branch)
        ttl = max(0, self.deadlines[job] - self.now)
        headers = PartHeaders(RequestHeaders(job, None, ttl, hop=hop), hop, PartKind(part.kind), str(part.source))
        self.append(joins_partition(job, len(self.log)), headers, plan, part=part, done=done)

    def append(
        self,
        partition: int,
        headers: PartHeaders,
        plan: Plan,
        *,
        part: Part | None = None,
        marker: MarkerBody | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        def act() -> None:
            self.log[partition].append(LogRecord(self.now, headers, part, marker, plan))
            if done is not None:
                self.after(self.some(1, 50), done)

        self.after(self.some(1, 100), act)

    # --- what must never be -------------------------------------------------------------------------------------------

    def commit(self, partition: int, at: int) -> None:
        """A commit lands. Below it there must be no part that no marker covers."""
        self.committed[partition] = at
        log = self.log[partition]
        for offset in range(self._checked[partition], at):
            part = log[offset].part
            if part is not None and not self._is_covered(log, offset):
                self.violations.append(f"committed {at}, but no marker covers the part at {offset}")
        self._checked[partition] = max(self._checked[partition], at)

    @staticmethod
    def _is_covered(log: Sequence[LogRecord], offset: int) -> bool:
        key = key_of(log[offset])
        return any(r.marker is not None and r.marker.last_offset >= offset and key_of(r) == key for r in log[offset:])

    def check_fire(self, partition: int, fire: Fire, claimed_at: int) -> None:
        """A join is fired. Whoever has read the log as it was at the claim knows if it was fired before."""
        if any(r.marker is not None and key_of(r) == fire.key for r in self.log[partition][:claimed_at]):
            self.violations.append(f"{fire.key} is fired although its marker was there at the claim")

    # --- joiners ------------------------------------------------------------------------------------------------------

    def serve(self, kind: type[Joiner]) -> None:
        """Give each partition a joiner, and another when that dies."""
        for partition in range(len(self.log)):
            self._claim(kind, partition)

    def _claim(self, kind: type[Joiner], partition: int) -> None:
        joiner = kind(self, partition)
        joiner.poll()
        mean = self.faults.crash_every_ms
        if mean:
            self.after(self.random.expovariate(1 / mean), lambda: self._end(kind, partition, joiner))

    def _end(self, kind: type[Joiner], partition: int, joiner: Joiner) -> None:
        if self.random.random() < 0.3:  # it believes for a while yet that the partition is its own
            self.after(self.some(0, 3_000), joiner.die)
            self._claim(kind, partition)
        else:
            joiner.die()
            self.after(self.some(0, 2_000), lambda: self._claim(kind, partition))


class Joiner:
    """One claim on one partition, as the shell around a JoinTable; subclasses make mistakes."""

    replays = True
    max_bytes = 1 << 30

    def __init__(self, world: World, partition: int) -> None:
        self.world = world
        self.partition = partition
        self.is_dead = False
        begin, end = world.committed[partition], len(world.log[partition])
        self.claimed_at = end
        self.tracker = OffsetTracker(begin)
        live_from = end if self.replays else begin
        self.table = JoinTable(begin, live_from, max_bytes=self.max_bytes, is_ready=is_ready)
        world.after(250, self.commit)
        world.after(60_000, self.read_back)

    def die(self) -> None:
        self.is_dead = True

    def alive(self, act: Callable[[], None]) -> Callable[[], None]:
        """`act`, unless this joiner has died meanwhile."""
        return lambda: None if self.is_dead else act()

    def send(self, act: Callable[[], None]) -> None:
        """Something that may be lost on the way if the joiner dies before it has left."""
        world = self.world

        def leave() -> None:
            if not self.is_dead or world.random.random() > world.faults.lose_in_flight:
                act()

        world.after(world.some(0, 50), leave)

    # --- reading ------------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        world = self.world
        at = self.tracker.expected
        found = world.log[self.partition][at : at + world.random.randint(1, 20)]
        for offset, record in enumerate(found, at):
            assert self.tracker.receive(offset) is OffsetArrival.NEXT
            self.take(offset, record)
        self.turn()
        world.after(world.some(1, 60) if found else world.some(10, 300), self.alive(self.poll))

    def take(self, offset: int, record: LogRecord) -> None:
        if record.marker is not None:
            self.table.mark(offset, record.headers, record.marker, record.appended_ms)
        elif record.part is not None:
            arrival = Arrival(offset, record.headers, record.part, 100, record.appended_ms)
            self.table.offer(arrival, record.plan, self.world.now)

    def turn(self) -> None:
        for decision in self.table.due(self.world.now):
            if isinstance(decision, Fire):
                self.fire(decision)
            elif isinstance(decision, Mark):
                self.mark(decision)
        for offset in self.table.settled():
            self.tracker.done(offset)

    # --- acting -------------------------------------------------------------------------------------------------------

    def fire(self, decision: Fire) -> None:
        self.world.fires += 1
        self.world.check_fire(self.partition, decision, self.claimed_at)
        emissions = emissions_of(decision)
        waiting = len(emissions)

        def acknowledged() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self.fired(decision)

        for emission in emissions:
            self.publish(decision, emission, self.alive(acknowledged))
        if not emissions:
            self.fired(decision)

    def publish(self, decision: Fire, emission: Emission, done: Callable[[], None]) -> None:
        self.send(lambda: self.world.carry_out(decision.key.job, decision.plan, emission, done))

    def fired(self, decision: Fire) -> None:
        self.table.fired(decision)
        self.turn()

    def mark(self, decision: Mark) -> None:
        def acknowledged() -> None:
            self.table.acknowledged(decision.key, decision.body, self.world.now)
            self.turn()

        plan = PLANS[decision.headers.hop.plan]
        marker = decision.headers
        self.send(
            lambda: self.world.append(self.partition, marker, plan, marker=decision.body, done=self.alive(acknowledged))
        )

    def commit(self) -> None:
        """One at a time; a joiner that dies meanwhile leaves one on the way."""
        if self.is_dead:
            return
        at = self.tracker.to_commit()
        if at is None:
            self.world.after(500, self.commit)
        else:
            self.world.after(self.world.some(1, 3_000), lambda: self.committed(at))

    def committed(self, at: int) -> None:
        """It lands, whoever is the owner by now."""
        self.world.commit(self.partition, at)
        self.tracker.commit_succeeded(at)
        self.world.after(250, self.commit)

    def read_back(self) -> None:
        if not self.is_dead:
            self.tracker.read_back(self.world.committed[self.partition])
            self.world.after(60_000, self.read_back)


PLANS: dict[str, Plan] = {}
"""Every plan of this process by digest, as the registry has them."""


def emissions_of(decision: Fire) -> list[Emission]:
    """What a join becomes."""
    if decision.why in (Why.READY, Why.EXPIRED):
        return fire(decision.plan, decision.key.join, decision.key.branch, decision.parts)
    status = Status.OVERLOADED if decision.why is Why.REFUSED else Status.CANCELLED
    return [Answer(failure=Failure(status, "refused", decision.key.join))]


# --- joiners with a mistake -------------------------------------------------------------------------------------------


class PlainOffsets(Joiner):
    """Writes no markers: a part is done when its join was fired."""

    def mark(self, decision: Mark) -> None:
        self.table.acknowledged(decision.key, decision.body, self.world.now)
        self.turn()


class MarksBeforeItFires(Joiner):
    """Writes the marker while what the join becomes is still on its way."""

    def fire(self, decision: Fire) -> None:
        self.table.fired(decision)
        self.turn()
        super().fire(decision)

    def fired(self, decision: Fire) -> None:
        """It said so already."""

    def publish(self, decision: Fire, emission: Emission, done: Callable[[], None]) -> None:
        world = self.world
        world.after(world.some(50, 500), self.alive(lambda: Joiner.publish(self, decision, emission, done)))


class SettlesWithoutMarker(Joiner):
    """Takes a marker for written that it will write soon."""

    def mark(self, decision: Mark) -> None:
        self.world.after(1_000, self.alive(lambda: Joiner.mark(self, decision)))
        self.table.acknowledged(decision.key, decision.body, self.world.now)
        self.turn()


class FiresWhileReplaying(Joiner):
    """Decides before it has read what was there at the claim."""

    replays = False


class LimitsItsTracker(Joiner):
    """Takes no more when too many records are unanswered, as is right for requests."""

    limit = 6

    def poll(self) -> None:
        if self.tracker.unanswered < self.limit:
            super().poll()
        else:
            self.turn()
            self.world.after(60, self.alive(self.poll))


def key_of(record: LogRecord) -> JoinKey:
    """The join that a record is about."""
    hop = record.headers.hop
    return JoinKey(hop.job, hop.step, hop.branch)


def settled(world: World) -> bool:
    """Whether no record of the log is held back."""
    return all(at == len(records) for at, records in zip(world.committed, world.log, strict=True))
