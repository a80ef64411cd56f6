"""The ingest process of one worker: wiring, start and stop.

    lease, spec ─▶ slots, link ─▶ engine ready ─▶ bind ─▶ claim ─▶ drain ─▶ batcher ⇄ engine ─▶ publisher ─▶ commit

It serves until its lease ends, whatever ends it: drained by the scheduler, lost, or given back at SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Any

from contracts import topics
from contracts.adapters.assignments import Assignments
from contracts.adapters.cancels import Cancels
from contracts.adapters.journal import Journal
from contracts.adapters.kafka import Producer, Reader
from contracts.adapters.leases import Leases
from contracts.adapters.plans import PlanStore
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.clock import Clock, SystemClock
from contracts.dead_letters import Undertaker
from contracts.errors import HeadraceError, LeaseLost, ModelLoadError, ModelNotFound, TransportError
from contracts.names import ModelVersion
from contracts.pool import Lease
from contracts.service import Deadline, Loops
from workers.draining.broker_time import BrokerTime
from workers.draining.courier import Courier
from workers.draining.plan_cache import PlanCache
from workers.draining.publisher import Publisher
from workers.draining.tenure import Tenure
from workers.draining.tombstones import Tombstones
from workers.ingest import metrics
from workers.ingest.batcher import Batcher
from workers.ingest.drain import Drain
from workers.ingest.engine_link import EngineLink
from workers.ingest.forwarder import Desk, Forwarder
from workers.ingest.intake import Intake
from workers.ingest.knobs import KnobWatch
from workers.ingest.onward import Onward
from workers.ingest.responder import Responder
from workers.ingest.settings import WorkerSettings
from workers.ingest.suspects import Suspects
from workers.ingest.validate import Validator
from workers.ingest.warden import Warden
from workers.link import Done, Failed, Load, ModelToLoad, Ready
from workers.slots import SLOT_COUNT, SlotFile, region_bytes, slots_path

log = logging.getLogger(__name__)

_MAX_REASON = 300  # characters that the pool keeps of why a lease ended
_LOST_GRACE_SECONDS = 2.0  # results of batches launched before the lease was lost may still be published


class Worker:
    """Ingest, from lease to exit. A Service."""

    def __init__(
        self, lease_id: str, token: int, run_dir: Path, settings: WorkerSettings, clock: Clock | None = None
    ) -> None:
        self._lease_id = lease_id
        self._token = token
        self._run_dir = run_dir
        self._settings = settings
        self._clock = clock or SystemClock()
        self._loops = Loops("worker")
        self._ready = asyncio.Event()
        self._load_failed: asyncio.Future[None] | None = None
        self._why_stopped = "stopped"
        self._started = False
        self._stopped = False

    # --- start --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when the model is warm and the lease active. Raises what prevents that."""
        settings = self._settings
        url = settings.redis.url.get_secret_value()
        self._redis = await RedisDoor.open(url, prefix=settings.redis.prefix)
        self._leases = Leases(self._redis, settings.redis.pool)
        lease, model = await self._what_to_serve()
        key = model.spec.key
        self._producer = Producer(settings.kafka)
        self._reader = Reader(settings.kafka, topics.commit_group(settings.kafka.prefix, key.model, key.version))
        self._wire(lease, model)
        self._started = True
        await asyncio.gather(self._producer.open(), self._reader.open(), self._journal.open(), self._link.start())
        try:
            await self._wait_for_engine()
        except ModelLoadError as exc:
            self._why_stopped = str(exc)[:_MAX_REASON]  # the pool tells it on to whoever waits for this worker
            raise
        topic = topics.requests(settings.kafka.prefix, key.model, key.version)
        self._drain.assign(await self._producer.partitions(topic))
        await self._tenure.bind({"ingest_pid": str(os.getpid()), "device": self._responder.device})
        self._loops.spawn("poll", self._drain.poll_loop())
        self._loops.spawn("commit", self._drain.commit_loop())
        self._loops.spawn("renew", self._tenure.renew_loop())
        self._loops.spawn("events", self._tenure.event_loop())
        self._loops.spawn("knobs", self._knobs.follow_loop())
        self._loops.spawn("grow", self._growth_loop(topic))
        self._loops.spawn("watch", self._warden.watch_loop())
        self._loops.spawn("clear", self._suspects.clear_loop(self._pump))
        self._loops.spawn("careful", self._suspects.careful_loop(self._intake, self._batcher.run_alone))
        self._loops.spawn("forward", self._forwarder.loop())
        self._loops.spawn("journal", self._suspects.keep_loop())
        self._loops.spawn("plans", self._plans.refresh_loop())
        log.info("serving %s on %s under lease %s", key, self._responder.device, self._lease_id)

    async def _what_to_serve(self) -> tuple[Lease, RegisteredModel]:
        lease = (await self._leases.state()).leases.get(self._lease_id)
        if lease is None or lease.token != self._token:
            msg = f"the pool knows no lease {self._lease_id} with our token"
            raise LeaseLost(msg)
        key = ModelVersion.parse(lease.models[0])
        model = await Registry(self._redis, self._settings.redis.pool).get_model(key)
        if model is None:
            msg = f"{key} is leased but not registered; apply it again"
            raise ModelNotFound(msg)
        return lease, model

    def _wire(self, lease: Lease, model: RegisteredModel) -> None:
        spec, key, prefix = model.spec, model.spec.key, self._settings.kafka.prefix
        inputs, outputs = region_bytes(spec, spec.inputs), region_bytes(spec, spec.outputs)
        self._slots = SlotFile.create(slots_path(self._lease_id), SLOT_COUNT, inputs, outputs)
        load = Load(
            models=(ModelToLoad(str(key), spec.model_dump_json(), model.uri),),
            slots_path=str(self._slots.path),
            slot_count=SLOT_COUNT,
            input_bytes=inputs,
            output_bytes=outputs,
            threads=max(1, sum(share.compute for share in lease.shares) // 100),
            device=",".join(share.device for share in lease.shares),
        )
        self._link = EngineLink(self._run_dir / f"{self._lease_id}.sock", str(self._token), load, self)
        broker_time = BrokerTime(self._clock)
        self._publisher = Publisher(self._producer, self._clock, broker_time.observe, self._pump)
        undertaker = Undertaker(str(key), model.digest, self._lease_id, self._token, socket.gethostname())
        self._responder = Responder(
            self._publisher,
            key,
            prefix=prefix,
            undertaker=undertaker,
            clock=self._clock,
            retry_delays=self._settings.worker.retry_delays_seconds,
        )
        self._plans = PlanCache(PlanStore(self._redis), self._producer, self._clock, prefix=prefix)
        courier = Courier(self._publisher, self._clock, prefix=prefix, partition_of=self._plans.partition_of)
        self._responder.onward = Onward(key, self._plans, courier, self._responder, self._clock)
        self._journal = Journal(self._redis, self._settings.redis.pool, self._lease_id, self._clock)
        self._suspects = Suspects(self._journal, lambda: self._tenure.is_trusted)
        self._tombstones = Tombstones(Cancels(self._redis), self._clock)
        self._batcher = self._build_batcher(model)
        self._intake = Intake(key, Validator(spec), self._responder, self._clock, broker_time)
        self._forwarder = self._build_forwarder(key, broker_time)
        self._warden = Warden(self._link, self._batcher, self._clock, self._settings.worker)
        registry = Registry(self._redis, self._settings.redis.pool)
        self._knobs = KnobWatch(registry, key, spec.batching, self._batcher.configure)
        self._drain = Drain(
            topics.requests(prefix, key.model, key.version),
            self._reader,
            intake=self._intake,
            batcher=self._batcher,
            settings=self._settings.worker,
            may_take=lambda: self._tenure.is_trusted,
            suspects=self._suspects,
            forwarder=self._forwarder,
        )
        self._tenure = Tenure(
            self._lease_id,
            self._token,
            leases=self._leases,
            assignments=Assignments(self._redis, self._settings.redis.pool),
            drains={self._drain.topic: self._drain},
            clock=self._clock,
            settings=self._settings.lease,
            renewed=self._pump,
        )
        self._loops.spawn("cancels", self._tombstones.follow_loop())

    def _build_forwarder(self, key: ModelVersion, broker_time: BrokerTime) -> Forwarder:
        kafka = self._settings.kafka
        group = topics.retry_group(kafka.prefix, key.model, key.version)
        return Forwarder(
            Desk(
                topic=topics.retry(kafka.prefix, key.model, key.version),
                requests=topics.requests(kafka.prefix, key.model, key.version),
                delays_seconds=self._settings.worker.retry_delays_seconds,
                open_reader=lambda: Reader(kafka, group),
                producer=self._producer,
                broker_time=broker_time,
                is_trusted=lambda: self._tenure.is_trusted,
            )
        )

    def _build_batcher(self, model: RegisteredModel) -> Batcher:
        return Batcher(
            model.spec,
            self._slots,
            clock=self._clock,
            publisher=self._publisher,
            responder=self._responder,
            send=self._link.send,
            may_launch=lambda: self._link.is_ready and self._tenure.is_trusted,
            is_trusted=lambda: self._tenure.is_trusted,
            cancelled=self._tombstones,
            suspects=self._suspects,
            worker=self._lease_id,
        )

    async def _wait_for_engine(self) -> None:
        self._load_failed = asyncio.get_running_loop().create_future()
        ready = asyncio.get_running_loop().create_task(self._ready.wait(), name="worker.ready")
        try:
            limit = self._settings.lease.start_seconds
            waiters: set[asyncio.Future[Any]] = {ready, self._load_failed}
            await asyncio.wait(waiters, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if self._load_failed.done():
                self._load_failed.result()
            if not ready.done():
                msg = f"the engine was not ready within {limit:.0f} s"
                raise ModelLoadError(msg)
        finally:
            ready.cancel()

    async def _growth_loop(self, topic: str) -> None:
        """Partitions that were added to the topic become claimable."""
        while True:
            await asyncio.sleep(self._settings.lease.renew_seconds)
            try:
                self._drain.assign(await self._producer.partitions(topic))
            except TransportError as exc:
                log.warning("the partitions of %s are unknown: %s", topic, exc)

    def _pump(self) -> None:
        self._batcher.pump()

    # --- what the engine says -----------------------------------------------------------------------------------------

    def engine_ready(self, ready: Ready) -> None:
        """Launch what waits."""
        self._responder.device = ready.device
        self._ready.set()
        self._batcher.pump()

    def engine_done(self, done: Done) -> None:
        """A batch's outputs are in its slot."""
        self._warden.finished(done.compute_us / 1e6)
        self._batcher.done(done)

    def engine_failed(self, failed: Failed) -> None:
        """A batch has no outputs."""
        self._batcher.failed(failed)

    def engine_lost(self) -> None:
        """The node agent starts another engine; its batches' requests run alone then."""
        metrics.ENGINE_RESTARTS.inc()
        log.warning("the engine is gone; waiting for the next one")
        self._batcher.engine_lost()

    def engine_cannot_load(self, message: str) -> None:
        """At the start this ends the worker; later the agent's restarts may still help."""
        log.error("the engine cannot load: %s", message)
        if self._load_failed is not None and not self._load_failed.done():
            self._load_failed.set_exception(ModelLoadError(message))

    # --- end ----------------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Return when the lease is over, which is how a worker's life ends; raise anything else that ends a loop."""
        try:
            await self._loops.wait()
        except LeaseLost as exc:
            log.info("%s", exc)

    async def stop(self, deadline: Deadline) -> None:
        """Take nothing new, finish what runs, commit, give back partitions and lease."""
        if self._stopped:
            return
        self._stopped = True
        if self._started:
            await self._wind_down(deadline)
        await self._loops.stop()
        if self._started:
            await self._tenure.stop()
            await self._plans.stop()
            await self._publisher.stop()
            self._batcher.stop()
            await self._suspects.stop(self._batcher.in_flight)
            await self._link.stop()
            await asyncio.gather(self._reader.close(), self._producer.close())
            self._slots.close()
        if hasattr(self, "_redis"):
            await self._redis.close()

    async def _wind_down(self, deadline: Deadline) -> None:
        try:
            await self._drain.quiet()
            await self._loops.join("poll", 2.0)
            if self._tenure.is_over:
                await self._publisher.drain(min(_LOST_GRACE_SECONDS, deadline.remaining))
                await self._drain.commit(1.0, final=True)
            else:
                async with asyncio.timeout(deadline.remaining):
                    await self._tenure.give_all(self._why_stopped)
        except (HeadraceError, TimeoutError) as exc:
            log.warning("stopping with work unfinished, somebody else will do it: %r", exc)
