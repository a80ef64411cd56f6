"""Ends engines that cannot be waited for: wedged ones at once, bloated ones between two batches.

What such an engine held is run again by the next one, alone; the node agent starts it as soon as the old one is gone,
later after several deaths. Requests whose time is over meanwhile are answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from contracts.clock import Clock
from contracts.errors import BackendError
from workers.ingest import metrics
from workers.ingest.engine_link import EngineLink
from workers.ingest.launcher import Launcher
from workers.ingest.settings import WorkerGroup
from workers.ingest.watchdog import Watchdog

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_WEIGH_EVERY = 4  # looks
_KILL_SECONDS = 10.0


class Warden:
    """Watches the engine of one worker. How long a batch may take is judged by the others of its model."""

    def __init__(self, link: EngineLink, launcher: Launcher, clock: Clock, settings: WorkerGroup) -> None:
        self._link = link
        self._launcher = launcher
        self._clock = clock
        self._memory_mib = settings.engine_memory_mib
        floor, unmeasured = settings.watchdog_seconds, settings.watchdog_unmeasured_seconds
        self._watchdogs = defaultdict[int, Watchdog](
            lambda: Watchdog(floor_seconds=floor, unmeasured_seconds=unmeasured)
        )
        self._killed_at: float | None = None

    def finished(self, model: int, seconds: float) -> None:
        """A batch of this model took this long to compute."""
        self._watchdogs[model].finished(seconds)

    async def watch_loop(self) -> None:
        """Look several times a second. Raises BackendError when an engine survives its kill."""
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            looks += 1
            self._look()
            if not self._link.is_ready:
                self._launcher.expire()
            if self._memory_mib is not None and looks % _WEIGH_EVERY == 0:
                self._weigh(self._memory_mib)

    def _look(self) -> None:
        now, running = self._clock.monotonic(), self._launcher.running
        model, number = running or (0, None)
        watchdog = self._watchdogs[model]
        if not watchdog.is_wedged(number, now):
            self._killed_at = None
            return
        if self._killed_at is None:
            self._killed_at = now
            metrics.ENGINE_KILLS.labels("wedged").inc()
            log.error("a batch has been running for more than %.1f s: the engine is killed", watchdog.limit)
            self._link.kill()
        elif now - self._killed_at > _KILL_SECONDS:
            # A process that no signal ends hangs in its driver. Without this worker's renewals the lease ends, and its
            # device stays in quarantine for as long as that process is there.
            msg = f"the engine is wedged and has survived SIGKILL for {_KILL_SECONDS:.0f} s"
            raise BackendError(msg)

    def _weigh(self, limit_mib: int) -> None:
        used = self._link.memory_mib
        if used > limit_mib and self._link.is_ready:
            metrics.ENGINE_KILLS.labels("memory").inc()
            log.warning("the engine uses %.0f MiB, more than %d: it is replaced", used, limit_mib)
            self._link.retire()
