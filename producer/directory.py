"""A copy of the registry that follows it: which versions are deployed, which answers by default, what each takes.

The registry's revision is looked at every half second and everything is read again only when it moved, so routing costs
no round trip. A name that the copy does not know is looked up at once, in case it was deployed a moment ago. While
Redis is away the last copy serves on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Protocol

from contracts import topics
from contracts.adapters.compiled import compiled
from contracts.adapters.plans import PlanStore
from contracts.adapters.registry import RegisteredPipeline, RegistryState
from contracts.errors import ConfigurationError, ModelNotFound, TransportError
from contracts.names import ModelVersion
from contracts.partitioner import Partitioner
from contracts.pipelines import PipelineSpec
from contracts.routing import pin
from producer.jobs import PipelinePlan
from producer.plan import ModelPlan

log = logging.getLogger(__name__)

_GROWTH_SECONDS = 30.0  # how often topics are asked whether they have grown; Kafka's clients read metadata as often
_LANE_SECONDS = 1.0  # how long a request waits for its priority's topic, before it takes the one that there is


class PartitionCounts(Protocol):
    """Knows how many partitions a topic has."""

    async def partitions(self, topic: str) -> int: ...


class RegistryView(Protocol):
    """What is read of the registry."""

    async def revision(self) -> int: ...
    async def snapshot(self) -> RegistryState: ...


class Directory:
    """Turns what a caller names into a plan."""

    def __init__(
        self,
        registry: RegistryView,
        kafka: PartitionCounts,
        *,
        prefix: str,
        refresh_seconds: float,
        longest_run: int,
        store: PlanStore | None = None,
    ) -> None:
        """`store`: where the plans of pipelines are put."""
        self._store = store
        self.plans: dict[str | tuple[str, int | None], ModelPlan] = {}
        """Plans by what callers wrote; a miss means asking `plan`."""
        self._registry = registry
        self._kafka = kafka
        self._prefix = prefix
        self._refresh_seconds = refresh_seconds
        self._longest_run = longest_run
        self._state: RegistryState | None = None
        self._by_key: dict[ModelVersion, ModelPlan] = {}
        self._making: dict[ModelVersion, asyncio.Task[ModelPlan]] = {}
        self._refreshing = asyncio.Lock()
        self._is_away = False

    async def open(self) -> None:
        """Read the registry. Raises TransportError."""
        await self._refresh()

    async def plan(self, model: str, version: int | None) -> ModelPlan:
        """The plan for what a caller named: `name`, `name@version`, or a name and a version.

        Raises ModelNotFound, and TransportError while a model's topic does not exist.
        """
        name, number = _split(model, version)
        try:
            key = self._pin(name, number)
        except ModelNotFound:
            await self._refresh()
            key = self._pin(name, number)
        plan = self._by_key.get(key)
        while plan is None:
            state = self._state
            made = await self._made(key)
            if state is self._state:
                plan = self._by_key[key] = made
            else:  # the registry was read again meanwhile: this may mean another version now, or none
                key = self._pin(name, number)
                plan = self._by_key.get(key)
        self.plans[model if version is None else (model, version)] = plan
        return plan

    async def refresh_loop(self) -> None:
        """Follow the registry and the growth of topics until cancelled."""
        growth_due = plans_due = 0.0
        while True:
            await asyncio.sleep(self._refresh_seconds)
            growth_due += self._refresh_seconds
            plans_due += self._refresh_seconds
            try:
                await self._refresh()
                if self._store is not None and plans_due >= self._store.keep_seconds:
                    plans_due = 0.0
                    await self._keep_plans(self._store)
                await self._follow_lanes()
                if growth_due >= _GROWTH_SECONDS:
                    growth_due = 0.0
                    await self._follow_growth()
                self._is_away = False
            except TransportError as exc:
                if not self._is_away:
                    log.warning("the registry cannot be read, requests go by the last copy: %s", exc)
                self._is_away = True

    def _pin(self, name: str, version: int | None) -> ModelVersion:
        state = self._state
        if state is None:
            msg = "the registry was not read yet"
            raise ModelNotFound(msg)
        return pin(name, version, routes=state.routes, deployed=state.served)

    async def _refresh(self) -> None:
        async with self._refreshing:
            if self._state is not None and await self._registry.revision() == self._state.revision:
                return
            self._state = await self._registry.snapshot()
            self.plans.clear()  # whatever callers wrote may mean another version, or another signature, now
            self._by_key.clear()
            self._making.clear()  # those who wait for one of these will see that the registry has moved, and ask again

    async def _made(self, key: ModelVersion) -> ModelPlan:
        """Make a plan once, however many ask: hundreds do whenever the registry has moved, and compiling takes a while.

        Whoever gives up waiting leaves it to the others.
        """
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.get_running_loop().create_task(self._make(key), name=f"plan {key}")
            task.add_done_callback(lambda task: self._forget(key, task))
        return await asyncio.shield(task)

    def _forget(self, key: ModelVersion, task: asyncio.Task[ModelPlan]) -> None:
        if self._making.get(key) is task:
            del self._making[key]
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def _make(self, key: ModelVersion) -> ModelPlan:
        state = self._state
        if state is not None and key in state.pipelines:
            return await self._make_pipeline(state.pipelines[key], state)
        model = state.models.get(key) if state else None
        topic = topics.requests(self._prefix, key.model, key.version)
        plan = ModelPlan(key, topic, await self._partitioner(key), model.spec.request_inputs if model else None)
        if self._has_lanes(key):
            await self._find_lanes(plan)
        return plan

    def _has_lanes(self, key: ModelVersion) -> bool:
        known = self._state.served.get(key) if self._state is not None else None
        return known is not None and known.topic.lanes

    async def _find_lanes(self, plan: ModelPlan) -> None:
        """Use the lanes that exist; those that are still to be made are looked for again."""
        for priority in topics.LANES:
            if priority not in plan.lanes:
                topic = topics.lane(plan.topic, priority)
                partitioner = await self._lane_partitioner(topic)
                if partitioner is not None:
                    plan.lanes[priority] = topic, partitioner

    async def _lane_partitioner(self, topic: str) -> Partitioner | None:
        try:
            async with asyncio.timeout(_LANE_SECONDS):
                count = await self._kafka.partitions(topic)
        except (TransportError, TimeoutError):
            count = 0
        return self._spread(count) if count else None

    async def _make_pipeline(self, pipeline: RegisteredPipeline, state: RegistryState) -> PipelinePlan:
        """Compile, and store the plan before anybody names it."""
        plan = compiled(pipeline, state)
        keys = [pipeline.key, *plan.models]
        found = dict(zip(keys, await asyncio.gather(*map(self._partitioner, keys)), strict=True))
        first = {topics.requests(self._prefix, *key): found[key] for key in plan.models}
        lanes = [topics.lane(topics.requests(self._prefix, *key), one) for key in plan.laned for one in topics.LANES]
        partitioners = await asyncio.gather(*map(self._lane_partitioner, lanes))
        first |= {topic: one for topic, one in zip(lanes, partitioners, strict=True) if one is not None}
        if self._store is not None:
            await self._store.put(plan.digest, plan.encoded)
        spec = PipelineSpec.model_validate(pipeline.spec)
        return PipelinePlan(plan, found[pipeline.key], first, inputs=spec, prefix=self._prefix)

    async def _partitioner(self, key: ModelVersion) -> Partitioner:
        topic = topics.requests(self._prefix, key.model, key.version)
        count = await self._kafka.partitions(topic)
        if not count:
            msg = f"{key} is deployed but its topic {topic} does not exist yet: is a scheduler running?"
            raise TransportError(msg)
        return self._spread(count)

    def _spread(self, count: int) -> Partitioner:
        return Partitioner(count, first=secrets.randbelow(count), longest_run=self._longest_run)

    async def _follow_lanes(self) -> None:
        for key, plan in list(self._by_key.items()):
            if len(plan.lanes) < len(topics.LANES) and self._has_lanes(key):
                await self._find_lanes(plan)

    async def _follow_growth(self) -> None:
        for plan in list(self._by_key.values()):
            for topic, partitioner in plan.topics.items():
                partitioner.grow(await self._kafka.partitions(topic))

    async def _keep_plans(self, store: PlanStore) -> None:
        """What this client submits with must not run out while jobs are on their way, nor be lost for long."""
        for plan in list(self._by_key.values()):
            if isinstance(plan, PipelinePlan):
                await store.keep(plan.plan.digest, plan.plan.encoded)


def _split(model: str, version: int | None) -> tuple[str, int | None]:
    if "@" not in model:
        return model, version
    try:
        key = ModelVersion.parse(model)
    except ConfigurationError as exc:
        raise ModelNotFound(str(exc)) from exc
    if version not in (None, key.version):
        msg = f"{model} and version {version} contradict each other"
        raise ModelNotFound(msg)
    return key.model, key.version
