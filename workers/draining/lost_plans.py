"""Plans that the store has lost: compiled again where the registry still leads to the very same one.

A plan's digest is that of its content, so there is nothing to be trusted: what was compiled under today's routes is the
plan that was asked for, or it is not. Where routes have moved since, somebody else has to bring it back: its submitters
look every few seconds, and so does every worker that has met it.
"""

from __future__ import annotations

import logging

from contracts.adapters.compiled import compiled
from contracts.adapters.registry import RegisteredPipeline, Registry, RegistryState
from contracts.errors import ConfigurationError, ModelNotFound
from contracts.names import ModelVersion
from contracts.plans import Plan

log = logging.getLogger(__name__)


class LostPlans:
    """Compiles the pipelines of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._state: RegistryState | None = None
        self._plans: dict[ModelVersion, Plan | None] = {}

    async def again(self, digest: str, pipeline: str) -> Plan | None:
        """The plan with this digest if `pipeline` (`name@version`) compiles to it today. Raises TransportError."""
        if self._state is None or await self._registry.revision() != self._state.revision:
            self._state, self._plans = await self._registry.snapshot(), {}
        try:
            registered = self._state.pipelines.get(ModelVersion.parse(pipeline))
        except ConfigurationError:
            registered = None
        if registered is None:  # and not remembered: anybody can name pipelines that never were
            return None
        if registered.key not in self._plans:
            self._plans[registered.key] = self._compiled(registered, self._state)
        plan = self._plans[registered.key]
        return plan if plan is not None and plan.digest == digest else None

    @staticmethod
    def _compiled(registered: RegisteredPipeline, state: RegistryState) -> Plan | None:
        try:
            return compiled(registered, state)
        except (ConfigurationError, ModelNotFound) as exc:
            log.info("pipeline %s cannot be compiled: %s", registered.key, exc)
            return None
