"""Plans for whoever can wait for them, made where a submission brings none."""

from __future__ import annotations

import math
from collections.abc import Callable

from contracts.adapters.compiled import compiled
from contracts.adapters.plans import PlanStore
from contracts.adapters.registry import Registry
from contracts.errors import ModelNotFound
from contracts.messages import Hop
from contracts.names import ModelVersion
from contracts.plans import Plan
from workers.draining.plan_cache import PlanCache, Then

Seconds = Callable[[], float]
_KEPT_SECONDS = 1.0
"""How long a compiled plan is taken for current; routes and versions may move at any time."""


class Plans:
    """The plans of one pipeline's jobs."""

    def __init__(self, key: ModelVersion, cache: PlanCache, store: PlanStore, registry: Registry, now: Seconds) -> None:
        self._key = key
        self._cache = cache
        self._store = store
        self._registry = registry
        self._now = now
        self._current: tuple[float, Plan] | None = None
        self._stored: dict[str, float] = {}
        """Until when a plan made here needs not be stored again."""

    def get(self, digest: str) -> Plan | None:
        """A plan that is at hand."""
        return self._cache.get(digest)

    def when(self, hop: Hop, then: Then) -> None:
        """Call back with a job's plan, None when there is none (any more); at once when it is at hand."""
        self._cache.when(hop, then)

    async def current(self) -> Plan:
        """The pipeline's plan under today's routes, stored for whoever meets it on the way.

        Raises ConfigurationError or ModelNotFound when it cannot be compiled (any more), TransportError.
        """
        if self._current is not None and self._now() < self._current[0]:
            return self._current[1]
        state = await self._registry.snapshot()
        pipeline = state.pipelines.get(self._key)
        if pipeline is None:
            msg = f"there is no pipeline {self._key} (any more)"
            raise ModelNotFound(msg)
        plan = compiled(pipeline, state)
        if self._now() >= self._stored.get(plan.digest, -math.inf):
            await self._store.keep(plan.digest, plan.encoded)
            self._stored = {plan.digest: self._now() + self._store.keep_seconds}
        if self._cache.get(plan.digest) is None:
            await self._cache.prepare(plan)
            self._cache.add(plan)
        self._current = (self._now() + _KEPT_SECONDS, plan)
        return plan
