"""Plans for whoever can wait for them, made where a submission brings none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from contracts.adapters.compiled import compiled
from contracts.adapters.plans import PlanStore
from contracts.adapters.registry import Registry
from contracts.errors import ModelNotFound
from contracts.names import ModelVersion
from contracts.plans import Plan
from workers.draining.plan_cache import PlanCache

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

    async def of(self, digest: str) -> Plan | None:
        """The plan with this digest; None when there is none."""
        plan = self._cache.get(digest)
        if plan is not None:
            return plan
        found: asyncio.Future[Plan | None] = asyncio.get_running_loop().create_future()
        self._cache.when(digest, lambda plan: None if found.done() else found.set_result(plan))
        return await found

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
            await self._store.put(plan.digest, plan.encoded)
            self._stored = {plan.digest: self._now() + self._store.refresh_seconds}
        if self._cache.get(plan.digest) is None:
            await self._cache.prepare(plan)
            self._cache.add(plan)
        self._current = (self._now() + _KEPT_SECONDS, plan)
        return plan
