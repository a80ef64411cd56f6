"""Draining a pipeline's joins topic: the acting half of `join` and `table`.

    poll ─▶ plan ─▶ table ─▶ fire: publish what follows ─▶ acknowledged ─▶ marker ─▶ acknowledged ─▶ offsets done

Nothing is decided while the lease is in doubt. A partition that is given away fires nothing more, but what was fired
gets its marker, so that the next owner does not do it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from contracts.adapters.kafka import Partition, Reader, Record
from contracts.codec import decode_address
from contracts.emissions import Job
from contracts.errors import InvalidRequest
from contracts.names import ModelVersion
from contracts.parts import PartHeaders, PartKind, decode_marker, decode_part_headers
from contracts.plans import Answer, Emission, Env, Plan
from workers.draining.claim import Claim
from workers.draining.metrics import count_spared
from workers.draining.offsets import Arrival
from workers.draining.plan_cache import unknown_plan
from workers.draining.topic import Bounds, TopicDrain
from workers.joiner import metrics
from workers.joiner.join import Fire, Mark, Patience, Why, key_of
from workers.joiner.records import arrival_of, emissions_of, is_ready, marker_record, without_plan
from workers.joiner.settings import JoinerGroup
from workers.joiner.table import PART_BYTES, JoinTable
from workers.joiner.tools import Tools

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_IDLE_SECONDS = 0.5
"""Between looks when nothing is due: cancels, doubt that has passed."""
_ROOM_SECONDS = 0.05
_COUNT_SECONDS = 1.0


class Desk:
    """One claimed partition: its joins, and how many records are on their way for them."""

    __slots__ = ("claim", "idle", "on_the_way", "parked_bytes", "phantoms", "table")

    def __init__(self, claim: Claim, table: JoinTable) -> None:
        self.claim = claim
        self.table = table
        self.on_the_way = 0
        self.parked_bytes = 0
        """Of parts that wait for their plans."""
        self.phantoms = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def begin(self) -> None:
        """Something is sent."""
        self.on_the_way += 1
        self.idle.clear()

    def end(self) -> None:
        """It is acknowledged."""
        self.on_the_way -= 1
        if not self.on_the_way:
            self.idle.set()


class Parts(TopicDrain):
    """The partitions of one pipeline's joins topic that this joiner owns."""

    def __init__(
        self,
        key: ModelVersion,
        topic: str,
        reader: Reader,
        tools: Tools,
        *,
        settings: JoinerGroup,
        patience: Patience,
        may_take: Callable[[], bool],
    ) -> None:
        super().__init__(topic, reader, settings=settings, may_take=may_take)
        self._key = key
        self._counted = 0.0
        self._tools = tools
        self._patience = patience
        self._max_bytes = settings.max_held_mib * _MIB
        self._desks: dict[Partition, Desk] = {}
        self._wake = asyncio.Event()

    # --- claims -------------------------------------------------------------------------------------------------------

    async def _opened(self, starts: Mapping[Partition, Bounds]) -> list[Claim]:
        claims = []
        for partition, (begin, end) in starts.items():
            claim = Claim(partition, begin)
            table = JoinTable(
                begin,
                end,
                max_bytes=self._max_bytes,
                is_ready=is_ready,
                cancelled=self._tools.cancelled,
                patience=self._patience,
            )
            self._desks[partition] = Desk(claim, table)
            claims.append(claim)
        self._wake.set()
        return claims

    def _is_full(self, claim: Claim) -> bool:
        """Never for want of parts, since the one that completes the oldest job may be the next; but plans come, or are
        given up, whatever is read.
        """
        return self._desks[claim.partition].parked_bytes > self._max_bytes

    async def _room(self) -> bool:
        if self._tools.publisher.has_room:
            return True
        await asyncio.sleep(_ROOM_SECONDS)
        return False

    def _silence(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            self._desks[claim.partition].table.close()

    async def _settle(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            desk = self._desks[claim.partition]
            while desk.on_the_way:
                await desk.idle.wait()
                self._turn(desk)  # what was fired gets its marker
            self._turn(desk)

    def _closed(self, partition: Partition) -> None:
        self._desks.pop(partition, None)
        for gauge in (metrics.OPEN, metrics.HELD, metrics.HELD_BYTES):
            gauge.labels(str(partition.partition)).set(0)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _take_records(self, claim: Claim, records: Sequence[Record]) -> None:
        desk = self._desks[claim.partition]
        for record in records:
            if claim.giving or desk.claim is not claim:
                return
            arrival = claim.tracker.receive(record.offset)
            if arrival is Arrival.NEXT:
                self._take(desk, record)
            elif arrival is Arrival.GAP:
                self._gap(claim, record)
                return

    def _take(self, desk: Desk, record: Record) -> None:
        try:
            headers = decode_part_headers(record.headers)
            if headers.kind is PartKind.MARKER:
                desk.table.mark(record.offset, headers, decode_marker(record.value), record.timestamp)
                return
        except InvalidRequest as exc:
            self._unusable(desk, record, str(exc))
            return
        desk.table.read_to(record.offset)
        plan = self._tools.plans.get(headers.hop.plan)
        if plan is not None:
            self._offer(desk, record, headers, plan)
        else:
            self._park(desk, record, headers)

    def _park(self, desk: Desk, record: Record, headers: PartHeaders) -> None:
        """Offer a part when its plan has come: until then all parts of its job wait, in their order, and nothing else
        does.
        """
        size, key = len(record.value or b"") + PART_BYTES, key_of(headers.hop)
        desk.parked_bytes += size
        desk.table.await_plan(key)

        def then(plan: Plan | None) -> None:
            desk.parked_bytes -= size
            desk.table.plan_came(key)
            if desk.claim.is_over or self._desks.get(desk.claim.partition) is not desk:
                return  # the next owner reads it again
            if plan is not None:
                self._offer(desk, record, headers, plan)
            elif self._may_take():
                self._without_plan(desk, record, headers)
            else:
                self._park(desk, record, headers)
            self._wake.set()

        self._tools.plans.when(headers.hop, then)

    def _offer(self, desk: Desk, record: Record, headers: PartHeaders, plan: Plan) -> None:
        arrival = arrival_of(headers, record, plan) if plan.pipeline == self._key else None
        if arrival is None:
            self._unusable(desk, record, f"plan {plan.digest} has no such branch")
            return
        desk.table.offer(arrival, plan, self._now_ms())

    def _unusable(self, desk: Desk, record: Record, why: str) -> None:
        """It belongs to no join, so no marker will ever cover it, and none is needed: it is put aside."""
        metrics.UNKNOWN.inc()
        log.warning("%s/%d: the record at %d is of no use: %s", *desk.claim.partition, record.offset, why)
        desk.table.read_to(record.offset)
        desk.begin()
        self._tools.graves.bury(
            record, decode_address(record.headers)[0], "invalid", why, partial(self._put_aside, desk, record.offset)
        )

    @staticmethod
    def _put_aside(desk: Desk, offset: int, _: object) -> None:
        desk.claim.tracker.done(offset)
        desk.end()

    def _without_plan(self, desk: Desk, record: Record, headers: PartHeaders) -> None:
        """Nobody can say what follows, so the job ends here."""
        metrics.UNKNOWN.inc()
        desk.table.doom(*without_plan(headers, record, self._key), self._now_ms())

    def _stepped_over(self, claim: Claim) -> None:
        self._desks[claim.partition].table.read_to(claim.tracker.expected - 1)

    async def _took(self) -> None:
        for desk in list(self._desks.values()):
            self._turn(desk)

    def _now_ms(self) -> int:
        return self._tools.broker_time.now_ms()

    # --- deciding and acting ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed that no record says."""
        self._wake.set()

    async def turn_loop(self) -> None:
        """Act when something is due, or acknowledged."""
        while True:
            is_time = self._tools.clock.monotonic() - self._counted > _COUNT_SECONDS
            for desk in list(self._desks.values()):
                if is_time:
                    desk.table.cancel()
                self._turn(desk)
                if is_time:
                    self._count(desk)
            if is_time:
                self._counted = self._tools.clock.monotonic()
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    def _pause(self) -> float:
        if not self._may_take():
            return _IDLE_SECONDS
        now = self._now_ms()
        times = [at for desk in self._desks.values() if (at := desk.table.next_ms()) is not None]
        return min([_IDLE_SECONDS, *(max(0.001, (at - now) / 1000) for at in times)])

    def _turn(self, desk: Desk) -> None:
        if desk.claim.is_over:
            return
        if self._may_take():
            for decision in desk.table.due(self._now_ms()):
                if isinstance(decision, Fire):
                    self._fire(desk, decision)
                elif isinstance(decision, Mark):
                    self._mark(desk, decision)
        for offset in desk.table.settled():
            desk.claim.tracker.done(offset)

    def _fire(self, desk: Desk, decision: Fire) -> None:
        metrics.FIRED.labels(decision.why.name.lower()).inc()
        desk.begin()
        if decision.why in (Why.CANCELLED, Why.REFUSED):
            self._send(desk, decision, emissions_of(decision))
            return
        if decision.why is Why.UNKNOWN:
            self._send(desk, decision, [Answer(failure=unknown_plan(decision.headers.hop.plan))])
            return

        def complete(envs: Sequence[Env]) -> None:
            parts = zip(decision.parts.items(), envs, strict=True)
            whole = {source: msgspec.structs.replace(part, env=env) for (source, part), env in parts}
            self._send(desk, decision, emissions_of(decision._replace(parts=whole), count_spared))

        self._tools.lookups.when(
            decision.plan,
            decision.key.join,
            [part.env for part in decision.parts.values()],
            decision.headers.request.tenant,
            complete,
            lambda failure: self._send(desk, decision, [Answer(failure=failure)]),
        )

    def _send(self, desk: Desk, decision: Fire, emissions: Sequence[Emission]) -> None:
        left = (decision.deadline_ms - self._now_ms()) / 1000
        self._tools.courier.send(
            Job.of(decision.headers.request, decision.plan),
            emissions,
            self._tools.clock.monotonic() + left,
            partial(self._fired, desk, decision),
            ran=decision.ran,
        )

    def _fired(self, desk: Desk, decision: Fire, _: object) -> None:
        desk.table.fired(decision)
        desk.end()
        self._wake.set()

    def _mark(self, desk: Desk, mark: Mark) -> None:
        desk.begin()
        acknowledged = partial(self._acknowledged, desk)
        lost = partial(self._not_taken, desk)
        self._tools.publisher.publish(*desk.claim.partition, marker_record(mark), (acknowledged, mark), (lost, mark))

    def _acknowledged(self, desk: Desk, mark: Mark) -> None:
        desk.table.acknowledged(mark.key, mark.body, self._now_ms())
        desk.end()
        self._wake.set()

    def _not_taken(self, desk: Desk, mark: Mark) -> None:
        log.error("%s/%d does not take a marker of %s", *desk.claim.partition, mark.key)
        desk.table.not_taken(mark.key, mark.body, self._now_ms())
        desk.end()
        self._wake.set()

    def _count(self, desk: Desk) -> None:
        metrics.PHANTOMS.inc(desk.table.phantoms - desk.phantoms)
        desk.phantoms = desk.table.phantoms
        burden, partition = desk.table.burden, str(desk.claim.partition.partition)
        metrics.OPEN.labels(partition).set(burden.open_joins)
        metrics.HELD.labels(partition).set(burden.held_records)
        metrics.HELD_BYTES.labels(partition).set(burden.held_bytes)
