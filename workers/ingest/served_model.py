"""One request topic in a worker, and what serves it: a model version with its queue and its answers.

    drain ─▶ intake ─▶ batcher ─▶ (launcher, engine) ─▶ responder ─▶ publisher
    lanes ─┘

A worker has one of these for each model of its lease. They share the engine and what is outside (`Surroundings`), and
nothing else: each has a commit group, a retry topic, a latency table and knobs of its own, so that a model behaves the
same whether it has a worker to itself or not.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, NamedTuple

from contracts import topics
from contracts.adapters.journal import Journal
from contracts.adapters.kafka import Producer, Reader
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.clock import Clock
from contracts.dead_letters import Undertaker
from contracts.errors import TransportError
from contracts.names import ModelVersion
from contracts.pool import Lease
from contracts.service import Loops
from workers.draining.broker_time import BrokerTime
from workers.draining.courier import Courier
from workers.draining.lookups import Lookups
from workers.draining.plan_cache import PlanCache
from workers.draining.publisher import Publisher
from workers.draining.tenure import Drain as Tenured
from workers.draining.tombstones import Tombstones
from workers.ingest.arrivals import Arrivals, Content, Store
from workers.ingest.batcher import Batcher
from workers.ingest.delivery import LANES
from workers.ingest.drain import Batches, Drain, Serving
from workers.ingest.forwarder import Desk, Forwarder
from workers.ingest.intake import Intake
from workers.ingest.knobs import KnobWatch
from workers.ingest.lane import Lane, LaneBatches, show_waiting
from workers.ingest.large_results import LargeResults
from workers.ingest.launcher import Launcher
from workers.ingest.onward import Onward
from workers.ingest.responder import Responder
from workers.ingest.settings import WorkerSettings
from workers.ingest.split import Answering
from workers.ingest.suspects import Suspects
from workers.ingest.validate import Validator
from workers.link import Batch, Continue, Forget

log = logging.getLogger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]
_QUIET_SECONDS = 2.0  # a poll that is under way ends sooner


class Surroundings(NamedTuple):
    """What the models of a worker share."""

    lease: Lease
    settings: WorkerSettings
    clock: Clock
    registry: Registry
    journal: Journal
    tombstones: Tombstones
    producer: Producer
    publisher: Publisher
    plans: PlanCache
    courier: Courier
    lookups: Lookups
    broker_time: BrokerTime
    launcher: Launcher
    send: Callable[[Batch | Continue | Forget], None]
    is_trusted: Callable[[], bool]
    store: Store
    large_results: LargeResults | None


class Served:
    """What drains one request topic, whatever its requests lead to."""

    def __init__(self, key: ModelVersion, digest: str, around: Surroundings) -> None:
        self.key = key
        kafka = around.settings.kafka
        self.topic = topics.requests(kafka.prefix, key.model, key.version)
        self._around = around
        self._group = topics.commit_group(kafka.prefix, key.model, key.version)
        self._reader = Reader(kafka, self._group)
        self.responder = self._build_responder(digest)
        self._suspects = Suspects(around.journal, around.is_trusted)
        self._forwarder = self._build_forwarder()
        self._loops: list[tuple[str, Loop]] = []
        self._batchers: list[Batcher] = []
        self._lanes: dict[str, Lane] = {}
        self.drain: Drain

    @property
    def topic_drains(self) -> list[Drain]:
        """What drains the request topic and its lanes, whether or not there are any."""
        return [self.drain, *(lane.drain for lane in self._lanes.values())]

    @property
    def drains(self) -> Mapping[str, Tenured]:
        """What drains each topic."""
        return {self.topic: self.drain, **self._lanes}

    def _serve(self, intake: Intake, batches: Serving, validator: Content, *, keeps_order: bool) -> None:
        around = self._around
        self._arrivals = arrivals = Arrivals(
            batches,
            store=around.store,
            validator=validator,
            responder=self.responder,
            suspects=self._suspects,
            clock=around.clock,
            is_trusted=around.is_trusted,
            keeps_order=keeps_order,
        )
        show_waiting(self.topic, batches)
        self.drain = self._drain(self.topic, self._reader, intake, arrivals, self._forwarder)
        self._loops += [
            ("grow", self._growth_loop),
            ("clear", lambda: self._suspects.clear_loop(around.launcher.pump)),
            ("careful", lambda: self._suspects.careful_loop(intake, arrivals.run_alone)),
            ("forward", self._forwarder.loop),
        ]

    def _drain(
        self,
        topic: str,
        reader: Reader,
        intake: Intake,
        batches: Batches,
        forwarder: Forwarder | None = None,
    ) -> Drain:
        around = self._around
        drain = Drain(
            topic,
            reader,
            intake=intake,
            batcher=batches,
            settings=around.settings.worker,
            may_take=around.is_trusted,
            suspects=self._suspects,
            forwarder=forwarder,
        )
        self._loops += [(f"poll {topic}", drain.poll_loop), (f"commit {topic}", drain.commit_loop)]
        return drain

    def _serve_lanes(self, intake: Intake, batcher: Batcher) -> None:
        """Be ready to drain what has a topic of its own besides."""
        around, kafka = self._around, self._around.settings.kafka
        opened = partial(batcher.room.open_lanes, batcher.queue.count_lanes)
        show_waiting(self.topic, batcher, batcher.room)
        for priority in topics.LANES:
            number = LANES[priority]
            topic = topics.lane(self.topic, priority)
            reader = Reader(kafka, self._group)
            batches = LaneBatches(self._arrivals, batcher.room, number)
            drain = self._drain(topic, reader, intake, batches)
            drain.lane = number
            self._lanes[topic] = Lane(drain, reader, partitions=around.producer.partitions, opened=opened)

    def _batcher(self, model: RegisteredModel, responder: Answering) -> Batcher:
        """The batches of a model, with its knobs followed."""
        around = self._around
        batcher = Batcher(
            model.spec,
            around.launcher,
            clock=around.clock,
            responder=responder,
            send=around.send,
            is_trusted=around.is_trusted,
            cancelled=around.tombstones,
            suspects=self._suspects,
            worker=around.lease.id,
        )
        knobs = KnobWatch(around.registry, model.key, model.spec.batching, batcher.configure)
        self._loops.append((f"knobs {model.key}", knobs.follow_loop))
        if model.spec.sequences is not None:
            self._loops.append((f"sequences {model.key}", batcher.sweep_loop))
        self._batchers.append(batcher)
        return batcher

    def _build_responder(self, digest: str) -> Responder:
        around, lease, key = self._around, self._around.lease, self.key
        responder = Responder(
            around.publisher,
            key,
            prefix=around.settings.kafka.prefix,
            undertaker=Undertaker(str(key), digest, lease.id, lease.token, socket.gethostname()),
            clock=around.clock,
            retry_delays=around.settings.worker.retry_delays_seconds,
        )
        responder.large_results = around.large_results
        responder.onward = Onward(key, around.plans, around.courier, around.lookups, responder, around.clock)
        return responder

    def _build_forwarder(self) -> Forwarder:
        around, kafka, key = self._around, self._around.settings.kafka, self.key
        group = topics.retry_group(kafka.prefix, key.model, key.version)
        return Forwarder(
            Desk(
                topic=topics.retry(kafka.prefix, key.model, key.version),
                requests=self.topic,
                delays_seconds=around.settings.worker.retry_delays_seconds,
                open_reader=lambda: Reader(kafka, group),
                producer=around.producer,
                broker_time=around.broker_time,
                is_trusted=around.is_trusted,
            )
        )

    async def open(self) -> None:
        """Connect."""
        await self._reader.open()

    async def assign(self) -> None:
        """Make the partitions of the topics claimable."""
        self.drain.assign(await self._around.producer.partitions(self.topic))
        for lane in self._lanes.values():
            await lane.assign()

    def spawn(self, loops: Loops) -> None:
        """Start to work."""
        for name, loop in self._loops:
            loops.spawn(f"{name} {self.key}", loop())

    async def _growth_loop(self) -> None:
        """Partitions that were added become claimable."""
        while True:
            await asyncio.sleep(self._around.settings.lease.renew_seconds)
            try:
                await self.assign()
            except TransportError as exc:
                log.warning("the partitions of %s are unknown: %s", self.topic, exc)

    async def quiet(self, loops: Loops) -> None:
        """Take nothing new."""
        drains = self.topic_drains
        await asyncio.gather(*(drain.quiet() for drain in drains))
        await asyncio.gather(*(loops.join(f"poll {drain.topic} {self.key}", _QUIET_SECONDS) for drain in drains))

    async def stop(self) -> None:
        """Cut no further batch, and let nothing that was launched be blamed for this worker's end."""
        await self._arrivals.stop()
        for batcher in self._batchers:
            batcher.stop()
            self._suspects.stop(batcher.in_flight)

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.gather(self._reader.close(), *(lane.close() for lane in self._lanes.values()))


class ServedModel(Served):
    """Serves one model version from its request topic."""

    def __init__(self, model: RegisteredModel, around: Surroundings) -> None:
        super().__init__(model.key, model.digest, around)
        validator = Validator(model.spec)
        intake = Intake(model.key, validator, self.responder, around.clock, around.broker_time)
        batcher = self._batcher(model, self.responder)
        self._serve(intake, batcher, validator, keeps_order=model.spec.keeps_order)
        if not model.spec.keeps_order:
            self._serve_lanes(intake, batcher)
