"""All of Headrace on one machine: a broker, a Redis, the scheduler and node agents, as `headrace up` runs them.

    async with EmbeddedStack(folder) as stack:
        async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url) as client: ...

The services are the same processes as in production, started the same way, and told where everything is by the same
environment. They are children: one that dies is started again, and all of them end with this object, in the order in
which work flows backwards: agents (which let their workers finish), scheduler, broker, Redis. Should this process be
killed, the guardian ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.errors import ConfigurationError, TransportError
from contracts.keys import DEFAULT_PREFIX
from contracts.payloads import URL_VARIABLE
from contracts.pool import PoolState
from contracts.service import Loops
from contracts.settings import HeadraceSettings, load_settings
from deploy.embedded.connection import (
    StackFile,
    holder,
    lock_data,
    remove_stack_file,
    write_stack_file,
)
from deploy.embedded.processes import Child, Server
from deploy.embedded.servers import BOOTSTRAP_VARIABLE, KafkaChoice, open_kafka, open_redis
from deploy.embedded.supervisor import Supervisor
from workers.agent.processes import strays
from workers.agent.records import RunFolder
from workers.agent.settings import default_folder, default_node

START_SECONDS = 30.0
AGENT_STOP_SECONDS = 30.0  # above what the agent itself allows its workers for finishing
SCHEDULER_STOP_SECONDS = 5.0
SERVER_STOP_SECONDS = 10.0
_WORKER_MODULES = ("workers.ingest", "workers.engine", "workers.joiner")
_READY_POLL_MS = 50
# There is one scheduler, and Redis is on this machine: after a crash nobody else waits out its leadership.
_LEADERSHIP = {"HEADRACE_SCHEDULER__LEADER_TTL_SECONDS": "3", "HEADRACE_SCHEDULER__LEADER_RENEW_SECONDS": "1"}
_NODE_STEM = 58  # of the 64 characters of a name, so that a number fits behind it
_LONGEST_RUN_FOLDER = 50  # characters; a socket path of about a hundred must hold the lease's name too


def _quiet(_line: str) -> None:
    pass


class EmbeddedStack:
    """A stack on a data folder of its own; what it stores there is found again by the next one."""

    def __init__(
        self,
        data: Path,
        *,
        kafka: KafkaChoice | None = None,
        redis: str | None = None,
        agents: int = 1,
        env: Mapping[str, str] | None = None,
        say: Callable[[str], None] = _quiet,
    ) -> None:
        """`redis` is the URL of a server to use; `env` goes to all services; `say` gets lines for the operator."""
        self.data = data.absolute()
        self.processes: dict[str, Child] = {}
        """The scheduler and the agents by name: `scheduler`, `agent` (`agent-2`, … when there are several)."""
        self._choice, self._agents = kafka, agents
        self._environ = {**os.environ, **(env or {})} | ({"HEADRACE_REDIS__URL": redis} if redis else {})
        self._say = say
        self._supervisor = Supervisor(say)
        self._loops = Loops("stack")
        self._lock: int | None = None
        self._kafka: Server | None = None
        self._redis: Server | None = None
        self._run_folders: dict[str, Path] = {}

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def kafka_bootstrap(self) -> str:
        """Bootstrap servers of the broker."""
        return self._started(self._kafka).address

    @property
    def redis_url(self) -> str:
        """URL of the Redis, with its password."""
        return self._started(self._redis).address

    @property
    def kafka(self) -> Server:
        """The broker."""
        return self._started(self._kafka)

    @property
    def redis(self) -> Server:
        """The Redis."""
        return self._started(self._redis)

    def settings_environment(self) -> dict[str, str]:
        """The `HEADRACE_*` variables by which any process finds this stack."""
        return self._file().environment

    def settings(self) -> HeadraceSettings:
        """The same as settings, for clients in this process."""
        known = self._file()
        return load_settings(
            HeadraceSettings,
            kafka={"bootstrap": known.kafka_bootstrap, "prefix": known.prefix},
            redis={"url": known.redis_url, "prefix": known.prefix, "pool": known.pool},
        )

    @staticmethod
    def _started(server: Server | None) -> Server:
        if server is None:
            msg = "the stack was not started"
            raise TransportError(msg)
        return server

    def _file(self) -> StackFile:
        return StackFile(
            kafka_bootstrap=self.kafka_bootstrap,
            redis_url=self.redis_url,
            prefix=self._environ.get("HEADRACE_KAFKA__PREFIX", DEFAULT_PREFIX),
            pool=self._environ.get("HEADRACE_REDIS__POOL", "default"),
            blobs=self._environ.get(URL_VARIABLE) or (self.data / "blobs").as_uri(),
            kafka=self.kafka.name,
            redis=self.redis.name,
            pids={"up": os.getpid()} | {name: child.pid for name, child in self.processes.items()},
        )

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when agents have registered and the scheduler runs.

        Raises ConfigurationError when another stack works on the same folder or something is missing on this machine,
        TransportError when a process does not come up.
        """
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = lock_data(self.data)
        if self._lock is None:
            msg = (
                f"a stack runs on {self.data} already (process {holder(self.data)}): use that one, stop it, or choose "
                "another folder with --data"
            )
            raise ConfigurationError(msg)
        try:
            await self._start_servers()
            await self._start_services()
        except BaseException:
            await self.kill_all()
            raise
        for server in (self.kafka, self.redis):
            for child in server.children:
                self._supervisor.keep(child, child.start)
        for child in self.processes.values():
            self._supervisor.keep(child, partial(self._respawn, child))
        self._loops.spawn("watch", self._supervisor.watch_loop())
        write_stack_file(self.data, self._file())

    async def _start_servers(self) -> None:
        remove_stack_file(self.data)
        kafka = asyncio.to_thread(open_kafka, self.data, choice=self._choice, environ=self._environ)
        redis = asyncio.to_thread(open_redis, self.data, environ=self._environ)
        both = await asyncio.gather(kafka, redis, return_exceptions=True)
        self._kafka, self._redis = (None if isinstance(found, BaseException) else found for found in both)
        for found in both:
            if isinstance(found, BaseException):
                raise found
        self._say(self.kafka.description)
        self._say(self.redis.description)

    async def _start_services(self) -> None:
        known = self._file()
        door = RedisDoor(known.redis_url, prefix=known.prefix, timeout_seconds=2.0)
        async with door:
            pool = Leases(door, known.pool)
            before = await pool.state()  # data of an earlier run names the same nodes
            self._spawn_services()
            await self._ready(pool, before)

    def _spawn_services(self) -> None:
        environment = {name: value for name, value in self._environ.items() if os.environ.get(name) != value}
        environment |= self.settings_environment()
        if not any(name in self._environ for name in _LEADERSHIP):
            environment |= _LEADERSHIP
        names = ["agent", *(f"agent-{number}" for number in range(2, self._agents + 1))]
        self._add("scheduler", ["scheduler"], environment)
        first = self._environ.get("HEADRACE_AGENT__NODE") or default_node()
        for number, name in enumerate(names, start=1):
            node = first if number == 1 else f"{first[:_NODE_STEM]}-{number}"
            folder = self._run_folders[node] = self._run_folder(name)
            self._add(name, ["workers.agent", "--node", node, "--run-dir", str(folder)], environment)

    def _run_folder(self, name: str) -> Path:
        """In the data folder, or below the temporary one where sockets in it would have too long a name."""
        folder = self.data / "run" / name
        if len(str(folder)) > _LONGEST_RUN_FOLDER:
            digest = hashlib.sha256(str(folder).encode()).hexdigest()[:10]
            folder = Path(tempfile.gettempdir()) / default_folder().name / digest
        return folder

    def _add(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        log = self.data / "logs" / f"{name}.log"
        argv = [sys.executable, "-P", "-m", *arguments]
        child = self.processes[name] = Child(name, argv, log=log, ready=lambda: True, environment=environment)
        child.spawn()

    async def _ready(self, pool: Leases, before: PoolState) -> None:
        """Return when every agent has registered and a scheduler leads, in this run."""
        until = time.monotonic() + START_SECONDS
        last_id, is_led = before.event_id, False
        while not (is_led and self._have_registered(before, await pool.state())):
            last_id, events = await pool.events(last_id, _READY_POLL_MS)
            is_led = is_led or any(event.kind == "leader" for event in events)
            for child in self.processes.values():
                if not child.is_running:
                    msg = f"{child.name} ended ({child.end}) while it started{child.log_tail()}"
                    raise TransportError(msg)
            if time.monotonic() > until:
                late = ", ".join(self.processes)
                msg = f"not all of {late} were ready within {START_SECONDS:.0f} s; see {self.data / 'logs'}"
                raise TransportError(msg)

    def _have_registered(self, before: PoolState, now: PoolState) -> bool:
        """Whether each agent registered its node since."""
        for name in self._run_folders:
            node, earlier = now.nodes.get(name), before.nodes.get(name)
            if node is None or (earlier is not None and node.incarnation == earlier.incarnation):
                return False
        return True

    async def wait(self) -> None:
        """Return never; raise what ended the supervision."""
        await self._loops.wait()

    async def stop(self) -> None:
        """Let the workers finish, then stop everything that was started, in order. Idempotent."""
        await self._stop_watching()
        agents = [child for name, child in self.processes.items() if name != "scheduler"]
        await self._stop_children(agents, AGENT_STOP_SECONDS)
        await self._stop_children([c for c in self.processes.values() if c not in agents], SCHEDULER_STOP_SECONDS)
        for server in (self._kafka, self._redis):
            if server is not None:
                await asyncio.to_thread(server.stop, SERVER_STOP_SECONDS)
        self._let_go()

    @staticmethod
    async def _stop_children(children: list[Child], seconds: float) -> None:
        for child in children:
            child.terminate()
        until = time.monotonic() + seconds
        await asyncio.gather(*(asyncio.to_thread(child.stop, until) for child in children))

    async def kill_all(self) -> None:
        """End everything at once, workers included, as a crash would. Idempotent."""
        await self._stop_watching()
        for child in self.processes.values():
            child.kill()
        for worker in self.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        for folder in map(RunFolder, self._run_folders.values()):
            for record in folder.load():
                folder.remove(record.lease.id)  # shared memory outlives those who used it
        for server in (self._kafka, self._redis):
            if server is not None:
                server.kill()
        self._let_go()

    async def _stop_watching(self) -> None:
        for child in (*self.processes.values(), *self._server_children()):
            self._supervisor.release(child)
        await self._loops.stop()
        if self._lock is not None:
            remove_stack_file(self.data)

    def _respawn(self, child: Child) -> None:
        child.spawn()
        write_stack_file(self.data, self._file())  # with its new process id

    def _server_children(self) -> list[Child]:
        return [child for server in (self._kafka, self._redis) if server is not None for child in server.children]

    def _let_go(self) -> None:
        for folder in self._run_folders.values():
            if not folder.is_relative_to(self.data):
                shutil.rmtree(folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- for whoever wants to see it survive --------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL the scheduler or an agent; it is started again."""
        self.processes[name].kill()

    def worker_pids(self, lease: str | None = None, modules: Sequence[str] = _WORKER_MODULES) -> list[int]:
        """The processes of all workers here, or of one lease: ingest and engine, or a joiner. Needs /proc."""
        found = (stray for folder in self._run_folders.values() for stray in strays(folder, modules))
        return sorted(identity.pid for identity, name in found if lease in (None, name))

    def kill_worker(self, lease: str) -> list[int]:
        """SIGKILL all processes of a worker; returns their ids."""
        pids = self.worker_pids(lease)
        _kill_all(pids)
        return pids

    def kill_engine(self, lease: str) -> list[int]:
        """SIGKILL only a worker's engine; its ingest lives on."""
        pids = self.worker_pids(lease, ("workers.engine",))
        _kill_all(pids)
        return pids


def _kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


__all__ = ["BOOTSTRAP_VARIABLE", "EmbeddedStack"]
