"""Batching knobs that were set by hand, applied to a serving model within a second.

One number is polled, the registry's revision; knobs are read when it has moved. The batcher takes them as a whole
between two decisions. Knobs that make no sense with the model (somebody registered a smaller one since) are logged and
left out, for a worker that serves with its own is better than none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from contracts.adapters.registry import Registry
from contracts.errors import ConfigurationError, TransportError
from contracts.names import ModelVersion
from contracts.serving_specs import BatchingSpec

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


class KnobWatch:
    """Follows the knobs of one model version."""

    def __init__(
        self, registry: Registry, key: ModelVersion, own: BatchingSpec, apply: Callable[[BatchingSpec], None]
    ) -> None:
        self._registry = registry
        self._key = key
        self._own = own
        self._apply = apply
        self._revision = -1
        self._current = own

    async def follow_loop(self) -> None:
        """Apply what is set, now and whenever it changes."""
        while True:
            try:
                await self.look()
            except TransportError as exc:
                log.debug("the knobs of %s are unknown: %s", self._key, exc)
            await asyncio.sleep(_POLL_SECONDS)

    async def look(self) -> None:
        """Apply what is set if something was changed since the last look. Raises TransportError."""
        revision = await self._registry.revision()
        if revision == self._revision:
            return
        knobs = await self._registry.get_knobs(self._key)
        self._revision = revision
        try:
            wanted = knobs.applied(self._own)
        except ConfigurationError as exc:
            log.warning("%s keeps its own batching: %s", self._key, exc)
            wanted = self._own
        if wanted != self._current:
            self._current = wanted
            log.info("%s: batching knobs are now %s", self._key, knobs.model_dump_json(exclude_none=True))
            self._apply(wanted)
