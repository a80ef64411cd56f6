"""The workers of this machine: starts and ends their processes, and remembers them on disk.

It carries out what `reconcile` decides and never decides itself. Every change of a process is reported through
`on_change`, so that the next decision follows at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from signal import SIGTERM
from typing import Literal

from contracts.clock import Clock, SystemClock
from contracts.errors import ConfigurationError
from contracts.names import check_name, is_name
from contracts.pool import Lease
from workers.agent import metrics
from workers.agent.environment import engine_environment, ingest_environment
from workers.agent.locks import Locks, ShareLock
from workers.agent.processes import Process, describe, strays
from workers.agent.reconcile import RESPAWN_WINDOW_SECONDS, WorkerView, respawn_delay
from workers.agent.records import Identity, Record, RunFolder

log = logging.getLogger(__name__)

Role = Literal["ingest", "engine"]
MODULES = ("workers.ingest", "workers.engine", "workers.joiner")
"""What is started: for a model an ingest with its engine, for a pipeline a joiner in the ingest's place."""


def needs_engine(lease: Lease) -> bool:
    """Whether a lease's worker computes anything; a pipeline's joiner holds no model."""
    return bool(lease.models and lease.shares)


@dataclass(slots=True)
class Worker:
    """The processes of one lease; a process that has ended stays here until the worker is cleaned up."""

    lease: Lease
    ingest: Process | None = None
    engine: Process | None = None
    lock: ShareLock | None = None
    deaths: list[float] = field(default_factory=list)
    engine_due: float = 0.0
    kill_at: float | None = None
    is_killed: bool = False
    is_released: bool = False
    ended_at: float | None = None
    """When the first of its last processes was seen to end for good, by the agent's clock."""

    def view(self) -> WorkerView:
        """What `reconcile` looks at."""
        return WorkerView(
            lease=self.lease.id,
            token=self.lease.token,
            ingest_alive=self.ingest is not None and self.ingest.is_alive,
            engine_alive=self.engine is not None and self.engine.is_alive,
            has_engine=needs_engine(self.lease),
            engine_due=self.engine_due,
            kill_at=self.kill_at,
            is_released=self.is_released,
            ended=describe(self.ingest.status) if self.ingest is not None else "",
        )

    def processes(self) -> list[Process]:
        """Those that live."""
        return [process for process in (self.ingest, self.engine) if process is not None and process.is_alive]


class Host:
    """Starts, adopts and ends workers. The module names exist so that tests can start small stand-ins."""

    def __init__(
        self,
        *,
        node: str,
        boot_id: str,
        folder: RunFolder,
        locks: Locks,
        on_change: Callable[[], None],
        clock: Clock | None = None,
        modules: tuple[str, ...] = MODULES,
    ) -> None:
        self._node, self._boot_id, self._folder, self._locks = node, boot_id, folder, locks
        self._on_change = on_change
        self._clock = clock or SystemClock()
        self._modules = modules
        self._workers: dict[str, Worker] = {}

    def views(self) -> dict[str, WorkerView]:
        """All workers that are not cleaned up."""
        return {name: worker.view() for name, worker in self._workers.items()}

    def names(self) -> frozenset[str]:
        """The leases of these workers."""
        return frozenset(self._workers)

    def adopt(self) -> None:
        """Take over what an earlier agent left; its processes may live or not, `reconcile` treats both."""
        for record in self._folder.load():
            worker = Worker(record.lease)
            if record.boot_id == self._boot_id:
                worker.ingest = self._adopt_process(worker, "ingest", record.ingest)
                worker.engine = self._adopt_process(worker, "engine", record.engine)
            self._workers[record.lease.id] = worker
            metrics.adoptions.inc(bool(worker.processes()))
        known = {process.identity for worker in self._workers.values() for process in worker.processes()}
        for identity, lease in strays(self._folder.path, self._modules):
            if identity not in known and (process := Process.adopt(identity)) is not None:
                log.warning("killing process %d, which no record tells of, of %s", identity.pid, lease)
                process.kill()
                process.forget()
                if lease not in self._workers and is_name(lease):
                    self._folder.clear(lease)

    def start(self, lease: Lease) -> None:
        """Start a worker.

        Raises ShareBusy while the device is still used, LeaseLost when the lease was overtaken, ConfigurationError or
        OSError when it cannot be started here at all.
        """
        name = check_name(lease.id, "lease id")  # it becomes part of paths
        fault = self._folder.fault(name)
        if fault is not None:
            raise ConfigurationError(fault)
        worker = Worker(lease, lock=self._locks.acquire(lease))
        self._folder.remove(name)
        self._workers[name] = worker
        try:
            worker.ingest = self._spawn(worker, "ingest")
            if needs_engine(lease):
                worker.engine = self._spawn(worker, "engine")
        except OSError:
            self.kill(name)
            if not worker.processes():
                self.clean_up(name)
            raise
        metrics.starts.inc()
        self._save(worker)

    def start_engine(self, name: str) -> None:
        """Start the engine of a worker again; raises ShareBusy or OSError when that cannot be done now."""
        worker = self._workers[name]
        worker.engine_due = self._clock.monotonic() + 1.0  # unless it works
        if worker.lock is None:  # adopted: the engine that ended held the lock, and has let go of it
            worker.lock = self._locks.acquire(worker.lease)
        worker.engine = self._spawn(worker, "engine")
        metrics.respawns.inc()
        self._save(worker)

    def stop(self, name: str, grace: float, *, with_signal: bool) -> None:
        """Let a worker end within `grace` seconds."""
        worker = self._workers[name]
        worker.kill_at = self._clock.monotonic() + grace
        processes = worker.processes()
        if with_signal and processes:
            processes[0].send(SIGTERM)

    def kill(self, name: str) -> None:
        """Kill what is left of a worker."""
        worker = self._workers[name]
        worker.kill_at = self._clock.monotonic()
        if not worker.is_killed:
            log.warning("killing the worker of %s", name)
            metrics.kills.inc()
            worker.is_killed = True
        for process in worker.processes():
            process.kill()

    def released(self, name: str) -> None:
        """Remember that the pool knows that this worker has ended."""
        if name in self._workers:
            self._workers[name].is_released = True

    def clean_up(self, name: str) -> float | None:
        """Remove what a worker whose processes are gone left behind; returns when it ended."""
        worker = self._workers.pop(name)
        if worker.lock is not None:
            worker.lock.close()
        self._folder.remove(name)
        return worker.ended_at

    def leave(self) -> None:
        """Let go of all workers without ending them."""
        for worker in self._workers.values():
            for process in worker.processes():
                process.forget()
            if worker.lock is not None:
                worker.lock.close()
        self._workers.clear()

    def _adopt_process(self, worker: Worker, role: Role, identity: Identity | None) -> Process | None:
        process = Process.adopt(identity) if identity is not None else None
        if process is not None:
            process.watch(partial(self._on_exit, worker, role))
        return process

    def _spawn(self, worker: Worker, role: Role) -> Process:
        lease = worker.lease
        joins = role == "ingest" and not lease.models
        command = [sys.executable, "-P", "-m", self._modules[2 if joins else role == "engine"]]
        command += ["--lease", lease.id, "--token", str(lease.token), "--run-dir", str(self._folder.path)]
        if role == "ingest":
            command += ["--node", self._node]
            environment = ingest_environment(os.environ)
        else:
            environment = engine_environment(os.environ, lease)
        process = Process.spawn(
            command,
            environment=environment,
            log=self._folder.log(lease.id, role),
            keep_open=worker.lock.descriptors if role == "engine" and worker.lock is not None else (),
        )
        process.watch(partial(self._on_exit, worker, role))
        return process

    def _on_exit(self, worker: Worker, role: Role) -> None:
        now = self._clock.monotonic()
        if worker.ended_at is None and (role == "ingest" or worker.ingest is None or not worker.ingest.is_alive):
            worker.ended_at = now
        if role == "engine":
            worker.deaths = [*(then for then in worker.deaths if now - then < RESPAWN_WINDOW_SECONDS), now]
            has_served = worker.engine is not None and self._folder.has_served(
                worker.lease.id, worker.engine.identity.pid
            )
            worker.engine_due = now + respawn_delay(worker.deaths, now, has_served=has_served)
        if not worker.processes():
            self._folder.clear(worker.lease.id)  # at once, also when the pool cannot be told yet
        self._on_change()

    def _save(self, worker: Worker) -> None:
        self._folder.save(
            Record(
                lease=worker.lease,
                boot_id=self._boot_id,
                ingest=worker.ingest.identity if worker.ingest is not None else None,
                engine=worker.engine.identity if worker.engine is not None else None,
            )
        )
