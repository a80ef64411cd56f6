"""The topics of deployments: made before anybody is wanted for their partitions, grown when a deployment grows.

Kafka may be away while the pool is not. So this runs beside the planning, tries again with growing pauses, and tells
what is known to exist; the planner gives out only that. Topics are never deleted here: requests outlive a deployment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from msgspec import Struct, field

from contracts import topics
from contracts.adapters.kafka import Admin
from contracts.errors import TransportError
from contracts.retries import DELAYS_SECONDS
from contracts.settings import KafkaSettings
from scheduler.snapshot import Demands

log = logging.getLogger(__name__)

DEAD_RETENTION_MS = 7 * 86_400_000  # dead letters wait for a person, who may be on holiday over a weekend
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 3.0
LISTING_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5)  # a new topic is known to one broker before it is known to all


class TopicPlan(Struct, frozen=True):
    """What a topic should be like."""

    partitions: int
    """At least; 0 for one that is not made, and looked after if it is there."""
    configs: Mapping[str, str] = field(default_factory=dict)


def topics_of(demand: Demands, prefix: str) -> dict[str, TopicPlan]:
    """The topics that the deployments need, and lanes that nobody asks for but that may be there from earlier."""
    found: dict[str, TopicPlan] = {}
    for wanted in demand.values():
        spec = wanted.spec
        kept = {"retention.ms": str(spec.topic.retention_ms)}
        for model, version in spec.keys:
            requests = topics.requests(prefix, model, version)
            found[requests] = TopicPlan(spec.partitions, kept)
            for priority in () if wanted.is_pipeline else topics.LANES:
                found[topics.lane(requests, priority)] = TopicPlan(spec.partitions if spec.topic.lanes else 0, kept)
            found[topics.retry(prefix, model, version)] = TopicPlan(len(DELAYS_SECONDS), kept)
            found[topics.dead(prefix, model)] = TopicPlan(1, {"retention.ms": str(DEAD_RETENTION_MS)})
        if wanted.joins:
            found[topics.joins(prefix, spec.model, spec.version)] = TopicPlan(wanted.joins, kept)
    return found


class TopicKeeper:
    """Makes the topics that are asked for; `partitions` tells which exist."""

    def __init__(self, settings: KafkaSettings, *, check_seconds: float, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._check_seconds = check_seconds
        self._on_change = on_change
        self._wanted: Mapping[str, TopicPlan] = {}
        self._known: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._admin: Admin | None = None

    @property
    def partitions(self) -> Mapping[str, int]:
        """The wanted topics that exist, with their partitions."""
        return self._known

    def want(self, wanted: Mapping[str, TopicPlan]) -> None:
        """Say which topics there should be; the others are left alone."""
        if wanted != self._wanted:
            self._wanted = dict(wanted)
            self._wake.set()

    async def keep_loop(self) -> None:
        """Keep the topics as they should be; never ends by itself."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self.ensure()
            except TransportError as exc:
                log.warning("topics cannot be looked after, trying again in %.2g s: %s", pause, exc)
                await self.close()
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
                continue
            pause = FIRST_PAUSE_SECONDS
            try:
                async with asyncio.timeout(self._check_seconds):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def ensure(self) -> None:
        """Make and grow what is missing, once. Raises TransportError."""
        self._wake.clear()
        wanted = self._wanted
        if not wanted:
            self._publish({})
            return
        if self._admin is None:
            admin = Admin(self._settings)
            await admin.open()
            self._admin = admin
        counts = await self._admin.partition_counts()
        short = {name: plan for name, plan in wanted.items() if counts.get(name, 0) < plan.partitions}
        faults = [await self._make(self._admin, name, plan) for name, plan in short.items()]
        for pause in LISTING_PAUSES if short else ():
            counts = await self._admin.partition_counts()
            if all(counts.get(name, 0) >= plan.partitions for name, plan in short.items()):
                break
            await asyncio.sleep(pause)
        self._publish({name: counts[name] for name in wanted if name in counts})
        late = sorted(name for name in short if counts.get(name, 0) < wanted[name].partitions)
        if late:
            message = "; ".join(filter(None, faults)) or f"the brokers do not list {', '.join(late)} yet"
            raise TransportError(message)

    @staticmethod
    async def _make(admin: Admin, name: str, wanted: TopicPlan) -> str:
        """Make or grow one topic; returns what is wrong, which must not keep the others waiting."""
        try:
            await admin.ensure_topic(name, wanted.partitions, wanted.configs)
        except TransportError as exc:
            return str(exc)
        log.info("topic %s has %d partitions", name, wanted.partitions)
        return ""

    def _publish(self, known: dict[str, int]) -> None:
        if known != self._known:
            self._known = known
            self._on_change()

    async def close(self) -> None:
        """Disconnect; idempotent."""
        admin, self._admin = self._admin, None
        if admin is not None:
            await admin.close()
