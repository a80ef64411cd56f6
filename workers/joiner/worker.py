"""The joiner process of one pipeline: wiring, start and stop.

    lease, pipeline ─▶ bind ─▶ claim ─▶ requests: begin jobs   ─▶ publisher ─▶ commit
                                    └─▶ joins: wait, fire, mark ─┘

It holds no model and has no engine; its lease has no device. It serves until the lease ends, whatever ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from contracts import topics
from contracts.adapters.assignments import Assignments
from contracts.adapters.blobs import Blobs
from contracts.adapters.cancels import Cancels
from contracts.adapters.kafka import Producer, Reader
from contracts.adapters.leases import Leases
from contracts.adapters.plans import PlanStore
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import Registry
from contracts.clock import Clock, SystemClock
from contracts.dead_letters import Undertaker
from contracts.emissions import MAX_RECORD_BYTES
from contracts.errors import LeaseLost, ModelNotFound, TransportError
from contracts.names import ModelVersion
from contracts.service import Deadline, Loops
from workers.draining.broker_time import BrokerTime
from workers.draining.courier import Courier
from workers.draining.ending import until_lease_ends, wind_down
from workers.draining.graves import Graves
from workers.draining.large_hops import LargeHops
from workers.draining.lookups import Lookups
from workers.draining.lost_plans import LostPlans
from workers.draining.plan_cache import PlanCache
from workers.draining.publisher import Publisher
from workers.draining.tenure import Tenure
from workers.draining.tombstones import Tombstones
from workers.draining.topic import TopicDrain
from workers.joiner.join import Patience
from workers.joiner.parts import Parts
from workers.joiner.plans import Plans
from workers.joiner.settings import JoinerSettings
from workers.joiner.submissions import Submissions
from workers.joiner.tools import Tools

log = logging.getLogger(__name__)

_QUIET_SECONDS = 2.0


class Joiner:
    """Joins the branches of one pipeline's jobs, from lease to exit. A Service."""

    def __init__(self, lease_id: str, token: int, settings: JoinerSettings, clock: Clock | None = None) -> None:
        self._lease_id = lease_id
        self._token = token
        self._settings = settings
        self._clock = clock or SystemClock()
        self._loops = Loops("joiner")
        self._started = False
        self._stopped = False

    # --- start --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when the lease is active. Raises what prevents that."""
        settings = self._settings
        url = settings.redis.url.get_secret_value()
        self._redis = await RedisDoor.open(url, prefix=settings.redis.prefix)
        self._leases = Leases(self._redis, settings.redis.pool)
        self._registry = Registry(self._redis, settings.redis.pool)
        key = await self._what_to_join()
        prefix = settings.kafka.prefix
        self._producer = Producer(settings.kafka)
        self._readers = (
            Reader(settings.kafka, topics.commit_group(prefix, key.model, key.version)),
            Reader(settings.kafka, topics.joins_group(prefix, key.model, key.version)),
        )
        self._wire(key)
        self._started = True
        await asyncio.gather(self._producer.open(), *(reader.open() for reader in self._readers))
        for drain in self._drains:
            drain.assign(await self._producer.partitions(drain.topic))
        await self._tenure.bind({"joiner_pid": str(os.getpid())})
        for number, drain in enumerate(self._drains):
            self._loops.spawn(f"poll-{number}", drain.poll_loop())
            self._loops.spawn(f"commit-{number}", drain.commit_loop())
        self._loops.spawn("turn", self._parts.turn_loop())
        self._loops.spawn("renew", self._tenure.renew_loop())
        self._loops.spawn("events", self._tenure.event_loop())
        self._loops.spawn("grow", self._growth_loop())
        self._loops.spawn("plans", self._cache.refresh_loop())
        log.info("joining %s under lease %s", key, self._lease_id)

    async def _what_to_join(self) -> ModelVersion:
        lease = (await self._leases.state()).leases.get(self._lease_id)
        if lease is None or lease.token != self._token:
            msg = f"the pool knows no lease {self._lease_id} with our token"
            raise LeaseLost(msg)
        key = ModelVersion.parse(lease.deployment)
        if await self._registry.get_pipeline(key) is None:
            msg = f"pipeline {key} is leased but not registered; apply it again"
            raise ModelNotFound(msg)
        return key

    def _wire(self, key: ModelVersion) -> None:
        settings, clock, prefix = self._settings, self._clock, self._settings.kafka.prefix
        broker_time = BrokerTime(clock)
        publisher = self._publisher = Publisher(self._producer, clock, broker_time.observe, self._wake)
        store = PlanStore(self._redis, keep_seconds=settings.redis.plan_seconds)
        lost = LostPlans(self._registry)
        self._cache = PlanCache(store, self._producer, clock, prefix=prefix, lost=lost)
        plans = Plans(key, self._cache, store, self._registry, clock.monotonic)
        courier = Courier(publisher, clock, prefix=prefix, partition_of=self._cache.partition_of)
        self._blobs = blobs = Blobs.from_settings(settings.blobs)
        self._lookups = Lookups(blobs, settings.blobs.in_flight_bytes)
        if blobs is not None:
            limit = settings.blobs.claim_check_bytes
            courier.large_hops = LargeHops(blobs, publisher, record_bytes=MAX_RECORD_BYTES, tensor_bytes=limit)
        self._large_hops = courier.large_hops
        undertaker = Undertaker(str(key), "", self._lease_id, self._token, socket.gethostname())
        courier.graves = graves = Graves(publisher, topics.dead(prefix, key.model), undertaker, clock)
        cancelled = Tombstones(Cancels(self._redis), clock)
        tools = Tools(plans, courier, graves, self._lookups, publisher, clock, broker_time, cancelled)
        requests, joins = self._readers
        self._parts = Parts(
            key,
            topics.joins(prefix, key.model, key.version),
            joins,
            tools,
            settings=settings.joiner,
            patience=Patience(keep_ms=int((settings.lease.ttl_seconds + settings.lease.handover_seconds) * 1000)),
            may_take=lambda: self._tenure.is_trusted,
        )
        submissions = Submissions(
            key,
            topics.requests(prefix, key.model, key.version),
            requests,
            tools,
            settings=settings.joiner,
            may_take=lambda: self._tenure.is_trusted,
        )
        self._drains: tuple[TopicDrain, ...] = (self._parts, submissions)
        self._tenure = Tenure(
            self._lease_id,
            self._token,
            leases=self._leases,
            assignments=Assignments(self._redis, settings.redis.pool),
            drains={drain.topic: drain for drain in self._drains},
            clock=clock,
            settings=settings.lease,
            renewed=self._wake,
        )
        self._loops.spawn("cancels", cancelled.follow_loop())

    def _wake(self) -> None:
        self._parts.wake()

    async def _growth_loop(self) -> None:
        """Partitions that were added to a topic become claimable."""
        while True:
            await asyncio.sleep(self._settings.lease.renew_seconds)
            for drain in self._drains:
                try:
                    drain.assign(await self._producer.partitions(drain.topic))
                except TransportError as exc:
                    log.warning("the partitions of %s are unknown: %s", drain.topic, exc)

    # --- end ----------------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Return when the lease is over; raise what else ends this joiner."""
        await until_lease_ends(self._loops)

    async def stop(self, deadline: Deadline) -> None:
        """Take nothing new, finish what was begun, commit, give back partitions and lease."""
        if self._stopped:
            return
        self._stopped = True
        if self._started:
            await wind_down(
                self._quiet(), self._drains, self._tenure, self._publisher, reason="stopped", deadline=deadline
            )
        await self._loops.stop()
        if self._started:
            await self._tenure.stop()
            await self._lookups.stop()
            if self._large_hops is not None:
                await self._large_hops.stop()
            await self._publisher.stop()
            await self._cache.stop()
            await asyncio.gather(self._producer.close(), *(reader.close() for reader in self._readers))
            if self._blobs is not None:
                self._blobs.close()
        if hasattr(self, "_redis"):
            await self._redis.close()

    async def _quiet(self) -> None:
        for number, drain in enumerate(self._drains):
            await drain.quiet()
            await self._loops.join(f"poll-{number}", _QUIET_SECONDS)
