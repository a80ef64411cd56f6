"""Redis → frozen values: what the planner decides on, and what a status command shows.

The pool is read in one round trip at one moment. The registry is read again only when its revision moved or an event
said so. Anybody who can read Redis can observe; only the leader acts on it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msgspec import Struct, structs

from contracts.adapters.compiled import compiled
from contracts.adapters.leases import Leases
from contracts.adapters.registry import RegisteredPipeline, Registry, RegistryState
from contracts.errors import HeadraceError
from contracts.names import ModelVersion
from contracts.pool import Demand, Event, PoolState
from scheduler.snapshot import Demands, Limits, Snapshot, Wanted
from scheduler.starts import LOOK_BACK_MS, Starts
from scheduler.topics import topics_of

log = logging.getLogger(__name__)

_FULL_PAGE = 1000  # events that one read returns at most
_CHANGES_OF_DEMAND = frozenset({"registry", "demand"})


class Observation(Struct, frozen=True):
    """The input of one plan."""

    snapshot: Snapshot
    demand: Demands


class Observer:
    """Reads pool and registry, and remembers what Redis does not hold."""

    def __init__(self, leases: Leases, registry: Registry, *, prefix: str, limits: Limits, salt: str = "") -> None:
        self.starts = Starts()
        self._leases = leases
        self._registry = registry
        self._base = Snapshot(pool=PoolState(), prefix=prefix, limits=limits, salt=salt)
        self._demand: dict[str, Wanted] | None = None
        self._revision = -1
        self._draining_since: dict[str, int] = {}
        self._last_id: str | None = None
        self._ahead = 0  # events that were taken in by a look already

    async def follow(self, block_ms: int) -> int:
        """Take in what happened since the last call, waiting up to `block_ms` for something; returns how much it was.

        The first call looks back over the last minutes and does not wait.
        """
        if self._last_id is None:
            now = (await self._leases.state()).now_unix_ms
            self._last_id, block_ms = f"{max(0, now - LOOK_BACK_MS)}-0", 0
        count, self._ahead = self._ahead, 0
        if count:
            block_ms = 0
        while True:
            self._last_id, events = await self._leases.events(self._last_id, block_ms)
            for event in events:
                self._see(event)
            count += len(events)
            if len(events) < _FULL_PAGE:
                return count
            block_ms = 0

    def _see(self, event: Event) -> None:
        self.starts.see(event)
        if event.kind in _CHANGES_OF_DEMAND:
            self._demand = None

    async def has_new_revision(self) -> bool:
        """Whether the registry was changed, by whatever way; it is then read again."""
        is_new = await self._registry.revision() != self._revision
        if is_new:
            self._demand = None
        return is_new

    async def demand(self) -> Demands:
        """What should run."""
        if self._demand is None:
            known = await self._registry.snapshot()
            self._demand = _merge(known, await self._registry.demand())
            self._revision = known.revision
        return self._demand

    async def observe(self, partitions: Mapping[str, int]) -> Observation:
        """One look; `partitions` are those of the topics that are known to exist."""
        demand = await self.demand()
        pool = await self._leases.state()
        # What the pool shows must be known: a worker that failed just now would be replaced at once otherwise.
        self._ahead = await self.follow(0)
        draining = [name for name, node in pool.nodes.items() if node.state == "draining" or node.hold == "draining"]
        self._draining_since = {name: self._draining_since.get(name, pool.now_unix_ms) for name in draining}
        snapshot = structs.replace(
            self._base,
            pool=pool,
            partitions=dict(partitions),
            backoff={name: wait for name, wait in self.starts.backoff.items() if name in demand},
            draining_since=self._draining_since,
        )
        return Observation(snapshot, demand)


async def look(leases: Leases, registry: Registry, *, prefix: str, limits: Limits | None = None) -> Observation:
    """A single look, for whoever only wants to show something. Kafka is not asked: topics are taken as declared."""
    observer = Observer(leases, registry, prefix=prefix, limits=limits or Limits())
    await observer.follow(0)
    demand = await observer.demand()
    return await observer.observe({name: plan.partitions for name, plan in topics_of(demand, prefix).items()})


def _merge(known: RegistryState, demands: Mapping[ModelVersion, Demand]) -> dict[str, Wanted]:
    found = {}
    for key, spec in known.deployments.items():
        demand, pipeline = demands.get(key, Demand()), known.pipelines.get(key)
        if pipeline is None:
            is_registered = all(model in known.models for model in spec.keys)
            found[str(key)] = Wanted(spec, demand, is_registered=is_registered)
        elif pipeline.is_fused:
            fused = _models_of(known, pipeline)
            found[str(key)] = Wanted(spec, demand, is_registered=bool(fused), fused=fused)
        else:
            found[str(key)] = Wanted(spec, demand, joins=pipeline.joins)
    return found


def _models_of(known: RegistryState, pipeline: RegisteredPipeline) -> tuple[str, ...]:
    """The models of a fused pipeline's plan, as routes have it now; none when it cannot be compiled."""
    try:
        models = compiled(pipeline, known).models
    except HeadraceError as exc:
        log.warning("pipeline %s cannot be compiled: %s", pipeline.key, exc)
        return ()
    return tuple(map(str, models)) if all(model in known.models for model in models) else ()
