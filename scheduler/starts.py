"""Which deployments fail to start, told from the pool's events: a lease that ended before its model was loaded.

A broken model must not make the fleet spin: after a failed start the next try waits 1, 2, 4 … 30 seconds, and is one
worker, not all that are missing. A worker that comes up ends that, and so does any change of the registry, since it may
be the repair. Ends that are nobody's fault do not count. The record is rebuilt from the last minutes of the event
stream, so a new leader, or a status command, knows what the last leader knew.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from contracts.pool import Event
from scheduler.snapshot import Backoff

LONGEST_WAIT_MS = 30_000
LOOK_BACK_MS = 300_000
"""Events older than this say nothing about the present."""
_NOBODYS_FAULT = frozenset({"drained", "node dead", "device lost"})


class _Start(Struct):
    deployment: str
    committed_unix_ms: int


class Starts:
    """Feed it every event in order; read `backoff`."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Start] = {}
        self._backoff: dict[str, Backoff] = {}

    @property
    def backoff(self) -> Mapping[str, Backoff]:
        """The deployments whose last start failed."""
        return dict(self._backoff)

    def see(self, event: Event) -> None:
        """Take one event into account."""
        match event.kind:
            case "commit":
                self._under_way[event.lease] = _Start(event.detail, _moment(event))
            case "bind":
                start = self._under_way.pop(event.lease, None)
                if start is not None:
                    self._backoff.pop(start.deployment, None)
            case "end":
                start = self._under_way.pop(event.lease, None)
                if start is not None and event.detail not in _NOBODYS_FAULT:
                    self._fail(start, _moment(event), event.detail)
            case "registry":
                self._backoff.clear()

    def refused(self, deployment: str, reason: str, now: int) -> None:
        """The pool did not grant a lease that was planned; asking again at once would get the same answer."""
        self._fail(_Start(deployment, now), now, reason)

    def _fail(self, start: _Start, now: int, reason: str) -> None:
        name = start.deployment
        known = self._backoff.get(name)
        # What was granted in spite of the waiting was planned before the failure: one failure, not several in a row.
        if known is not None and start.committed_unix_ms < known.retry_unix_ms:
            return
        failures = 1 if known is None else known.failures + 1
        wait = min(LONGEST_WAIT_MS, 1_000 * 2 ** min(failures - 1, 10))
        self._backoff[name] = Backoff(failures, now + wait, reason)


def _moment(event: Event) -> int:
    return int(event.id.partition("-")[0])
