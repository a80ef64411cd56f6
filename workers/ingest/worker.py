"""The ingest process of one worker: what its models share, start and stop.

    lease, specs ─▶ slots, link ─▶ engine ready ─▶ bind ─▶ claim ─▶ models drain ⇄ engine ─▶ publisher ─▶ commit

It serves until its lease ends, whatever ends it: drained by the scheduler, lost, or given back at SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.adapters.assignments import Assignments
from contracts.adapters.blobs import Blobs, ByteBudget
from contracts.adapters.cancels import Cancels
from contracts.adapters.journal import Journal
from contracts.adapters.kafka import Producer
from contracts.adapters.leases import Leases
from contracts.adapters.plans import PlanStore
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.clock import Clock, SystemClock
from contracts.emissions import MAX_RECORD_BYTES
from contracts.errors import LeaseLost, ModelLoadError, ModelNotFound
from contracts.names import ModelVersion
from contracts.plans import Plan
from contracts.pool import Lease
from contracts.service import Deadline, Loops
from workers.draining.broker_time import BrokerTime
from workers.draining.courier import Courier
from workers.draining.ending import until_lease_ends, wind_down
from workers.draining.large_hops import LargeHops
from workers.draining.lookups import Lookups
from workers.draining.lost_plans import LostPlans
from workers.draining.plan_cache import PlanCache
from workers.draining.publisher import Publisher
from workers.draining.tenure import Tenure
from workers.draining.tombstones import Tombstones
from workers.ingest import metrics, suspects
from workers.ingest.arrivals import Store
from workers.ingest.buckets import batch_sizes
from workers.ingest.engine_link import EngineLink
from workers.ingest.fused_pipeline import FusedPipeline, plan_of
from workers.ingest.large_results import LargeResults
from workers.ingest.launcher import Launcher
from workers.ingest.served_model import Served, ServedModel, Surroundings
from workers.ingest.settings import WorkerSettings
from workers.ingest.warden import Warden
from workers.link import Done, Failed, Load, ModelToLoad, Part, Ready
from workers.slots import SLOT_COUNT, SlotFile, region_bytes, slots_path

log = logging.getLogger(__name__)

_MAX_REASON = 300  # characters that the pool keeps of why a lease ended


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
        self._served: list[Served] = []
        self._why_stopped = "stopped"
        self._started = False
        self._stopped = False

    # --- start --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when all models are warm and the lease active. Raises what prevents that."""
        settings = self._settings
        url = settings.redis.url.get_secret_value()
        self._redis = await RedisDoor.open(url, prefix=settings.redis.prefix)
        self._leases = Leases(self._redis, settings.redis.pool)
        self._registry = Registry(self._redis, settings.redis.pool)
        lease, models, plan = await self._what_to_serve()
        self._producer = Producer(settings.kafka)
        self._wire(lease, models, plan)
        self._started = True
        opening = [served.open() for served in self._served]
        await asyncio.gather(self._producer.open(), self._journal.open(), self._link.start(), *opening)
        try:
            await self._wait_for_engine()
        except ModelLoadError as exc:
            self._why_stopped = str(exc)[:_MAX_REASON]  # the pool tells it on to whoever waits for this worker
            raise
        for served in self._served:
            await served.assign()
        device = self._served[0].responder.device
        await self._tenure.bind({"ingest_pid": str(os.getpid()), "device": device})
        for served in self._served:
            served.spawn(self._loops)
        self._loops.spawn("renew", self._tenure.renew_loop())
        self._loops.spawn("events", self._tenure.event_loop())
        self._loops.spawn("watch", self._warden.watch_loop())
        self._loops.spawn("plans", self._plans.refresh_loop())
        self._loops.spawn("journal", suspects.keep_loop(self._journal))
        log.info("serving %s on %s under lease %s", ", ".join(lease.models), device, self._lease_id)

    async def _what_to_serve(self) -> tuple[Lease, list[RegisteredModel], Plan | None]:
        """The lease, its models, and the plan if they are those of a fused pipeline."""
        lease = (await self._leases.state()).leases.get(self._lease_id)
        if lease is None or lease.token != self._token:
            msg = f"the pool knows no lease {self._lease_id} with our token"
            raise LeaseLost(msg)
        known = await self._registry.snapshot()
        self._trusted = {key for key, deployment in known.served.items() if deployment.allow_code}
        missing = [name for name in lease.models if ModelVersion.parse(name) not in known.models]
        if missing:
            msg = f"{missing[0]} is leased but not registered; apply it again"
            raise ModelNotFound(msg)
        models = [known.models[ModelVersion.parse(name)] for name in lease.models]
        return lease, models, plan_of(known, lease.deployment, lease.models)

    def _wire(self, lease: Lease, models: Sequence[RegisteredModel], plan: Plan | None) -> None:
        self._open_link(lease, models)
        self._launcher = Launcher(self._slots, self._clock, self._may_launch)
        broker_time = BrokerTime(self._clock)
        self._publisher = Publisher(self._producer, self._clock, broker_time.observe, self._launcher.pump)
        self._blobs = blobs = Blobs.from_settings(self._settings.blobs)
        self._lookups = Lookups(blobs, self._settings.blobs.in_flight_bytes)
        self._large_results = None if blobs is None else LargeResults(blobs, self._publisher)
        self._journal = Journal(self._redis, self._settings.redis.pool, self._lease_id, self._clock)
        self._plans = PlanCache(
            PlanStore(self._redis, keep_seconds=self._settings.redis.plan_seconds),
            self._producer,
            self._clock,
            prefix=self._settings.kafka.prefix,
            lost=LostPlans(self._registry),
        )
        tombstones = Tombstones(Cancels(self._redis), self._clock)
        self._warden = Warden(self._link, self._launcher, self._clock, self._settings.worker)
        around = Surroundings(
            lease=lease,
            settings=self._settings,
            clock=self._clock,
            registry=self._registry,
            journal=self._journal,
            tombstones=tombstones,
            producer=self._producer,
            publisher=self._publisher,
            plans=self._plans,
            courier=self._build_courier(),
            lookups=self._lookups,
            broker_time=broker_time,
            launcher=self._launcher,
            send=self._link.send,
            is_trusted=lambda: self._tenure.is_trusted,
            store=Store(self._blobs, ByteBudget(self._settings.blobs.in_flight_bytes), self._slots.input_bytes),
            large_results=self._large_results,
        )
        if plan is None:
            self._served = [ServedModel(model, around) for model in models]
        else:
            self._served = [FusedPipeline(plan, models, around)]
        self._tenure = Tenure(
            self._lease_id,
            self._token,
            leases=self._leases,
            assignments=Assignments(self._redis, self._settings.redis.pool),
            drains={topic: drain for served in self._served for topic, drain in served.drains.items()},
            clock=self._clock,
            settings=self._settings.lease,
            renewed=self._launcher.pump,
        )
        self._loops.spawn("cancels", tombstones.follow_loop())

    def _open_link(self, lease: Lease, models: Sequence[RegisteredModel]) -> None:
        """One set of slots for all models, each large enough for any of them: the engine has two batches at a time."""
        specs = [model.spec for model in models]
        inputs = max(region_bytes(spec, spec.inputs) for spec in specs)
        outputs = max(region_bytes(spec, spec.outputs) for spec in specs)
        self._slots = SlotFile.create(slots_path(self._lease_id), SLOT_COUNT, inputs, outputs)
        load = Load(
            models=tuple(map(self._to_load, models)),
            slots_path=str(self._slots.path),
            slot_count=SLOT_COUNT,
            input_bytes=inputs,
            output_bytes=outputs,
            threads=max(1, sum(share.compute for share in lease.shares) // 100),
            device=",".join(share.device for share in lease.shares),
        )
        self._link = EngineLink(self._run_dir / f"{self._lease_id}.sock", str(self._token), load, self)

    def _to_load(self, model: RegisteredModel) -> ModelToLoad:
        spec = model.spec.model_dump_json()
        batching, is_trusted = model.spec.batching, model.key in self._trusted
        sizes = batch_sizes(batching)
        padded = sizes if batching.padding.batch or batching.batch_invariant else ()
        return ModelToLoad(str(model.key), spec, model.uri, model.digest, is_trusted, sizes, padded)

    def _build_courier(self) -> Courier:
        prefix = self._settings.kafka.prefix
        courier = Courier(self._publisher, self._clock, prefix=prefix, partition_of=self._plans.partition_of)
        if self._blobs is not None:
            limit = self._settings.blobs.claim_check_bytes
            courier.large_hops = LargeHops(
                self._blobs, self._publisher, record_bytes=MAX_RECORD_BYTES, tensor_bytes=limit
            )
        self._large_hops = courier.large_hops
        return courier

    def _may_launch(self) -> bool:
        return self._publisher.has_room and self._link.is_ready and self._tenure.is_trusted

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

    # --- what the engine says -----------------------------------------------------------------------------------------

    def engine_ready(self, ready: Ready) -> None:
        """Launch what waits."""
        for served in self._served:
            served.responder.device = ready.device
        self._launcher.timed(ready.timings)
        self._ready.set()
        self._launcher.pump()

    def engine_done(self, done: Done) -> None:
        """A batch's outputs are in its slot."""
        model = self._launcher.done(done)
        if model is not None:
            self._warden.finished(model, (done.step_us or done.compute_us) / 1e6)

    def engine_part(self, part: Part) -> None:
        """A part of a stream is in its slot."""
        model = self._launcher.model_in(part.slot)
        if model is not None:
            self._warden.finished(model, part.step_us / 1e6)
        self._launcher.part(part)

    def engine_failed(self, failed: Failed) -> None:
        """A batch has no outputs."""
        self._launcher.failed(failed)

    def engine_lost(self) -> None:
        """The node agent starts another engine; its batches' requests run alone then."""
        metrics.ENGINE_RESTARTS.inc()
        log.warning("the engine is gone; waiting for the next one")
        self._launcher.engine_lost()

    def engine_cannot_load(self, message: str) -> None:
        """At the start this ends the worker; later the agent's restarts may still help."""
        log.error("the engine cannot load: %s", message)
        if self._load_failed is not None and not self._load_failed.done():
            self._load_failed.set_exception(ModelLoadError(message))

    # --- end ----------------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Return when the lease is over; raise what else ends this worker."""
        await until_lease_ends(self._loops)

    async def stop(self, deadline: Deadline) -> None:
        """Take nothing new, finish what runs, commit, give back partitions and lease."""
        if self._stopped:
            return
        self._stopped = True
        if self._started:
            quiet = asyncio.gather(*(served.quiet(self._loops) for served in self._served))
            drains = [drain for served in self._served for drain in served.topic_drains]
            why = self._why_stopped
            await wind_down(quiet, drains, self._tenure, self._publisher, reason=why, deadline=deadline)
        await self._loops.stop()
        if self._started:
            await self._tenure.stop()
            await self._plans.stop()
            for large in (self._large_results, self._large_hops, self._lookups):
                if large is not None:
                    await large.stop()
            await self._publisher.stop()
            for served in self._served:
                await served.stop()
            await suspects.close_in_peace(self._journal)
            await self._link.stop()
            await asyncio.gather(*(served.close() for served in self._served), self._producer.close())
            self._slots.close()
            if self._blobs is not None:
                self._blobs.close()
        if hasattr(self, "_redis"):
            await self._redis.close()
