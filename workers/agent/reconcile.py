"""What an agent does about its leases and processes: pure, a function of both and the time.

The pool says which leases this node has; the operating system says which processes run. Whoever is behind is brought
along, from any mixture of the two, so a lost event, a crash of the agent or a duplicated step needs no case of its own:

    lease reserved, nothing runs                        start a worker
    lease held, ingest runs, engine has ended           start the engine again
    lease held, ingest has ended                        release the lease at once, end the engine, clean up, confirm
    lease in quarantine, unknown or of another token    the ingest learns it by itself; killed after the grace; confirm
    the pool was out of reach for one ttl               the leases are over: kill everything

A lease is confirmed only when both processes are gone: that is what makes its device free. An ingest is never started
twice under one lease, since nobody could tell the two apart by their token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from contracts.pool import Lease

RESPAWN_WINDOW_SECONDS = 60.0
_first_delay, _longest_delay = 0.5, 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds."""

    ttl: float
    suspect: float
    quarantine_grace: float
    engine_grace: float
    drain: float


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The processes of one lease as the agent sees them."""

    lease: str
    token: int
    ingest_alive: bool
    engine_alive: bool
    has_engine: bool = True
    """False for leases without a device."""
    engine_due: float = 0.0
    """The engine is not started again before this."""
    kill_at: float | None = None
    """It was told to end, and is killed then."""
    is_released: bool = False
    ended: str = ""
    """How the ingest ended, for people."""

    @property
    def is_gone(self) -> bool:
        """Whether no process is left."""
        return not self.ingest_alive and not self.engine_alive


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start both processes."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Start the engine of a worker whose ingest lives."""

    lease: str


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Give the worker until now + grace. With a signal: SIGTERM to the ingest, or to an engine that is left alone."""

    lease: str
    grace: float
    with_signal: bool


@dataclass(frozen=True, slots=True)
class KillWorker:
    """SIGKILL whatever is left of a worker."""

    lease: str


@dataclass(frozen=True, slots=True)
class Release:
    """End the lease in the pool: its partitions become free."""

    lease: str
    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Remove what the worker's processes left behind."""

    lease: str


@dataclass(frozen=True, slots=True)
class Confirm:
    """Tell the pool that the processes are gone: the device becomes free."""

    lease: str
    token: int


Action = StartWorker | StartEngine | StopWorker | KillWorker | Release | CleanUp | Confirm


def reconcile(
    leases: Mapping[str, Lease] | None,
    workers: Mapping[str, WorkerView],
    now: float,
    *,
    seen: float,
    limits: Limits,
    is_stopping: bool = False,
) -> list[Action]:
    """What to do now. `leases` is what the pool said at `seen`; None when it has not said anything yet."""
    if now - seen >= limits.ttl:
        return [KillWorker(view.lease) for view in workers.values() if not view.is_gone]
    if leases is None:
        return []
    actions: list[Action] = []
    for name in sorted(leases.keys() | workers.keys()):
        lease, view = leases.get(name), workers.get(name)
        if view is None:
            if lease is not None:
                can_start = now - seen < limits.suspect and not is_stopping
                actions += _without_worker(lease, can_start=can_start, is_stopping=is_stopping)
        elif lease is None or lease.token != view.token:
            actions += _unknown(view, now, 0.0 if lease is not None else limits.quarantine_grace)
        elif not lease.is_live:
            actions += _over(view, now, limits)
        else:
            actions += _held(view, now, limits, is_stopping=is_stopping)
    return actions


def _without_worker(lease: Lease, *, can_start: bool, is_stopping: bool) -> Iterator[Action]:
    if lease.state == "quarantine":
        yield Confirm(lease.id, lease.token)
    elif lease.state == "reserved" and not is_stopping:
        if can_start:
            yield StartWorker(lease)
    else:
        reason = "its node's agent is stopping" if lease.state == "reserved" else "its processes are gone"
        yield Release(lease.id, lease.token, reason)
        yield Confirm(lease.id, lease.token)


def _unknown(view: WorkerView, now: float, grace: float) -> Iterator[Action]:
    if view.is_gone:
        yield CleanUp(view.lease)
    else:
        yield from _ended_within(view, now, grace, with_signal=False)


def _over(view: WorkerView, now: float, limits: Limits) -> Iterator[Action]:
    if view.is_gone:
        yield CleanUp(view.lease)
        yield Confirm(view.lease, view.token)
    elif view.ingest_alive:
        yield from _ended_within(view, now, limits.quarantine_grace, with_signal=False)
    else:
        yield from _ended_within(view, now, limits.engine_grace, with_signal=True)


def _held(view: WorkerView, now: float, limits: Limits, *, is_stopping: bool) -> Iterator[Action]:
    if not view.ingest_alive:
        if not view.is_released:
            yield Release(view.lease, view.token, f"ingest {view.ended}" if view.ended else "its processes are gone")
        if view.is_gone and view.is_released:  # not before, or a release that got lost would start a second ingest
            yield CleanUp(view.lease)
            yield Confirm(view.lease, view.token)
        elif not view.is_gone:
            yield from _ended_within(view, now, limits.engine_grace, with_signal=True)
        return
    if view.has_engine and not view.engine_alive and now >= view.engine_due:
        yield StartEngine(view.lease)
    if is_stopping:
        yield from _ended_within(view, now, limits.drain, with_signal=True)
    elif view.kill_at is not None and now >= view.kill_at:
        yield KillWorker(view.lease)  # what was begun is ended


def _ended_within(view: WorkerView, now: float, grace: float, *, with_signal: bool) -> Iterator[Action]:
    if view.kill_at is None or view.kill_at > now + grace:
        yield StopWorker(view.lease, grace, with_signal)
    elif now >= view.kill_at:
        yield KillWorker(view.lease)


def next_due(workers: Mapping[str, WorkerView], now: float) -> float | None:
    """When time alone makes a difference again; None when only news can."""
    moments = [view.kill_at for view in workers.values() if view.kill_at is not None]
    moments += [view.engine_due for view in workers.values() if view.has_engine and not view.engine_alive]
    return min((moment for moment in moments if moment > now), default=None)


def respawn_delay(deaths: Sequence[float], now: float, *, has_served: bool = False) -> float:
    """Seconds before an engine is started again after the deaths at these times, the last of them just now.

    The first is answered at once: it was probably one bad request. From the second within a minute on it is the model
    or the machine, and hammering would help neither. An engine that was ready before it died is another matter: its
    worker is finding out which request kills it, and everybody else waits meanwhile.
    """
    recent = sum(1 for death in deaths if now - death < RESPAWN_WINDOW_SECONDS)
    if recent < 2:  # noqa: PLR2004 - the first one
        return 0.0
    if has_served:
        return _first_delay
    return min(_longest_delay, _first_delay * 2.0 ** min(recent - 2, 16))
