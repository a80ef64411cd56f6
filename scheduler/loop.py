"""The loop around the planner: observe → plan → apply, when something happened or the tick is over.

It waits on the pool's event stream, so a change is acted on in milliseconds, and at rest a tick costs a few short
calls: the whole pool is read only after a change, while something is under way, or once a second. Nothing is kept that
could not be read again: a failed look or a refused write is simply followed by the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math

from contracts.adapters.assignments import Assignments
from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import Registry
from contracts.clock import SystemClock
from contracts.errors import TransportError
from contracts.names import new_request_id
from contracts.service import Deadline, Loops
from contracts.telemetry import serve_metrics
from scheduler import metrics
from scheduler.actions import Commit, Wait
from scheduler.apply import Applier, Refused, Timing
from scheduler.explain import why_waiting
from scheduler.leader import Leader
from scheduler.observe import Observation, Observer
from scheduler.planner import plan
from scheduler.reaper import Patience, Reaper
from scheduler.settings import SchedulerSettings
from scheduler.snapshot import Limits
from scheduler.sweeper import sweep_loop
from scheduler.topics import TopicKeeper, topics_of

log = logging.getLogger(__name__)

REVISION_SECONDS = 0.5
"""How long a change of the registry that did not reach this pool's events may go unseen."""
_LONGEST_PAUSE_SECONDS = 1.0


class Scheduler:
    """The service: one leader plans, any number of standbys wait."""

    def __init__(self, settings: SchedulerSettings, *, holder: str = "") -> None:
        self._settings = settings
        self._holder = holder or f"scheduler-{new_request_id()[:12]}"
        self._loops = Loops("scheduler")
        self._redis: RedisDoor | None = None
        self._leader: Leader | None = None
        self._topics: TopicKeeper | None = None

    @property
    def is_leading(self) -> bool:
        """Whether this process plans for the pool."""
        return self._leader is not None and self._leader.term is not None

    async def start(self) -> None:
        """Return when Redis answers and the loops run; whether this process leads shows later."""
        settings = self._settings
        if settings.scheduler.metrics_port is not None:
            log.info("metrics on port %d", serve_metrics(settings.scheduler.metrics_port))
        self._redis = redis = await RedisDoor.from_settings(settings.redis)
        leases = Leases(redis, settings.redis.pool)
        self._leader = leader = Leader(
            leases,
            self._holder,
            ttl_seconds=settings.scheduler.leader_ttl_seconds,
            renew_seconds=settings.scheduler.leader_renew_seconds,
        )
        planning = Planning(settings, redis, leases, leader)
        self._topics = planning.topics
        self._loops.spawn("lead", leader.lead_loop())
        self._loops.spawn("topics", planning.topics.keep_loop())
        self._loops.spawn("plan", planning.plan_loop())
        self._loops.spawn("sweep", sweep_loop(settings.blobs, lambda: self.is_leading))
        log.info("%s stands by for pool %s", self._holder, settings.redis.pool)

    async def wait(self) -> None:
        """Raise what ended a loop."""
        await self._loops.wait()

    async def stop(self, deadline: Deadline) -> None:
        """Stop planning, then resign, so that a standby leads at once; idempotent."""
        await self._loops.stop()
        if self._leader is not None:
            await self._leader.resign()
        if self._topics is not None:
            await self._topics.close()
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.close()


class Planning:
    """One leader's work, tick by tick."""

    def __init__(self, settings: SchedulerSettings, redis: RedisDoor, leases: Leases, leader: Leader) -> None:
        self._settings = settings.scheduler
        self._leader = leader
        self._leases = leases
        self._registry = Registry(redis, settings.redis.pool)
        self._prefix = settings.kafka.prefix
        self._limits = Limits(
            handover_ms=round(settings.lease.handover_seconds * 1000),
            node_grace_ms=round(self._settings.node_grace_seconds * 1000),
        )
        timing = Timing(
            start_ms=round(settings.lease.start_seconds * 1000),
            handover_ms=self._limits.handover_ms,
            drain_ms=round(self._settings.drain_seconds * 1000),
        )
        patience = Patience(
            suspect_ms=round(self._settings.suspect_seconds * 1000),
            dead_ms=round(self._settings.dead_seconds * 1000),
            ttl_ms=round(settings.lease.ttl_seconds * 1000),
        )
        self._applier = Applier(leases, Assignments(redis, settings.redis.pool), leader, timing)
        self._reaper = Reaper(leases, leader, patience)
        self.topics = TopicKeeper(
            settings.kafka, check_seconds=self._settings.topic_check_seconds, on_change=self._look_again
        )
        self._metrics = metrics.PoolMetrics()
        self._observer: Observer | None = None
        self._waits: dict[str, Wait] = {}
        self._clock = SystemClock()
        self._next_look = self._next_revision = 0.0

    def _look_again(self) -> None:
        self._next_look = 0.0

    async def plan_loop(self) -> None:
        """Lead whenever this process is the leader; never ends by itself."""
        pause = self._settings.tick_seconds
        while True:
            try:
                await self._turn()
                pause = self._settings.tick_seconds
            except TransportError as exc:
                metrics.LOOP_FAILURES.inc()
                log.warning("the pool cannot be read or written, trying again in %.2g s: %s", pause, exc)
                self._look_again()
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)

    async def _turn(self) -> None:
        """Stand by for a tick, or wait for a change for at most a tick and act on it."""
        if self._leader.term is None:
            self._stand_by()
            await asyncio.sleep(self._settings.tick_seconds)
            return
        if self._observer is None:
            self._observer = Observer(
                self._leases, self._registry, prefix=self._prefix, limits=self._limits, salt=new_request_id()[:2]
            )
        rest = self._next_look - self._clock.monotonic()
        has_changed = await self._observer.follow(round(1000 * max(0.0, min(rest, self._settings.tick_seconds)))) > 0
        if has_changed:
            await asyncio.sleep(self._settings.floor_seconds)
            await self._observer.follow(0)
        has_changed |= await self._reaper.reap()
        has_changed |= await self._has_new_revision(self._observer)
        if (has_changed or self._clock.monotonic() >= self._next_look) and self._leader.term is not None:
            await self._act(self._observer)

    def _stand_by(self) -> None:
        if self._observer is not None:
            self._observer = None
            self._waits = {}
            self._metrics.hide()
        self._look_again()

    async def _has_new_revision(self, observer: Observer) -> bool:
        now = self._clock.monotonic()
        if now < self._next_revision:
            return False
        self._next_revision = now + REVISION_SECONDS
        return await observer.has_new_revision()

    async def _act(self, observer: Observer) -> None:
        """One plan, carried out."""
        self._next_look = math.inf
        self.topics.want(topics_of(await observer.demand(), self._prefix))
        seen = await observer.observe(self.topics.partitions)
        now = seen.snapshot.pool.now_unix_ms
        with metrics.PLAN_SECONDS.time():
            actions = plan(seen.snapshot, seen.demand, now)
        self._report(seen, {action.deployment: action for action in actions if isinstance(action, Wait)})
        refused = await self._applier.apply(actions)
        self._remember(observer, refused, now)
        # Limits run out without an event: while anything is under way every tick is a look.
        is_calm = not actions and not any(topic.unsettled_since for topic in seen.snapshot.pool.topics.values())
        wait = self._settings.calm_seconds if is_calm else self._settings.tick_seconds
        self._next_look = min(self._next_look, self._clock.monotonic() + wait)

    def _remember(self, observer: Observer, refused: list[Refused], now: int) -> None:
        for one in refused:
            if isinstance(one.action, Commit) and one.refusal.code != "STALE":
                observer.starts.refused(one.action.deployment, str(one.refusal), now)

    def _report(self, seen: Observation, waits: dict[str, Wait]) -> None:
        """Say what begins to wait and what waits no more; once, not every tick."""
        for name, wait in waits.items():
            before = self._waits.get(name)
            if before is None or (before.missing, before.reason) != (wait.missing, wait.reason):
                log.warning("%s: %s", wait, why_waiting(seen.snapshot, seen.demand, wait))
        for name in self._waits.keys() - waits.keys():
            log.info("%s waits for no worker any more", name)
        self._waits = waits
        self._metrics.show(seen.snapshot, seen.demand)
