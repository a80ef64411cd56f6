"""The node agent: the parent of every worker on its machine, and the pool's eyes and hands there.

Four loops: *heartbeat* says that the node lives and gets its leases; *events* makes that happen at once when something
changed; *reconcile* compares leases with processes and acts; *health* reports GPUs. Nothing is commanded: the pool
holds what should be, so an agent that was away needs no replay.

Workers survive the death of the agent and are adopted by the next one. They do not survive the loss of the pool for
longer than a lease lasts: by then somebody else may hold what they hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from contracts.adapters.leases import Leases
from contracts.clock import Clock, SystemClock
from contracts.errors import ConfigurationError, HeadraceError, TransportError
from contracts.pool import DeviceReport, Event, Health, Lease, Refusal, Registration
from contracts.service import Deadline, Loops
from workers.agent import metrics
from workers.agent.host import MODULES, Host
from workers.agent.locks import Locks, ShareBusy, lock_folder
from workers.agent.monitor import GpuMonitor
from workers.agent.reconcile import (
    Action,
    CleanUp,
    Confirm,
    KillWorker,
    Limits,
    Release,
    StartEngine,
    StartWorker,
    StopWorker,
    next_due,
    reconcile,
)
from workers.agent.records import RunFolder, make_private_folder
from workers.agent.settings import AgentSettings
from workers.devices import cpu
from workers.devices.discovery import look_around
from workers.devices.inventory import device_reports, node_report
from workers.devices.nvml import Nvml

log = logging.getLogger(__name__)

_event_wait_ms = 5_000
_first_contact_seconds = 5.0
_settle_reserve_seconds = 3.0  # of a stop: to release and confirm what has ended
_takeovers_tolerated = 3
_takeover_window_seconds = 30.0
_remembered_ends = 10_000


class NodeAgent:
    """A service; see the module."""

    def __init__(
        self,
        settings: AgentSettings,
        leases: Leases,
        *,
        nvml: Nvml | None = None,
        clock: Clock | None = None,
        modules: tuple[str, ...] = MODULES,
    ) -> None:
        self.settings = settings.agent
        self._pool, self._nvml, self._clock = leases, nvml, clock or SystemClock()
        self._limits = Limits(
            ttl=settings.lease.ttl_seconds,
            suspect=self.settings.suspect_seconds,
            quarantine_grace=self.settings.quarantine_seconds,
            engine_grace=self.settings.engine_grace_seconds,
            drain=self.settings.drain_seconds,
        )
        self._machine = look_around(
            self.settings.node, cores=self.settings.cores, memory_mib=self.settings.memory_mib, nvml=nvml
        )
        self._devices: tuple[DeviceReport, ...] = device_reports(self._machine)
        self._folder = RunFolder(self.settings.run_folder)
        self._host = Host(
            node=self.settings.node,
            boot_id=self._machine.boot_id,
            folder=self._folder,
            locks=Locks(self.settings.lock_dir.absolute(), leases.pool),
            on_change=self._on_change,
            clock=self._clock,
            modules=modules,
        )
        self._monitor: GpuMonitor | None = None
        self._loops = Loops("agent")
        self._folder_lock: int | None = None
        self._registration: Registration | None = None
        self._is_registered, self._poke, self._wake, self._is_idle = (asyncio.Event() for _ in range(4))
        self._leases: dict[str, Lease] | None = None
        self._seen = self._clock.monotonic()
        self._is_fenced = self._is_stopping = self._is_cut_off = False
        self._takeovers: list[float] = []
        self._unsaid: dict[str, Health] = {}
        self._given_up: dict[str, None] = {}
        self._ended: dict[str, None] = {}

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Adopt what an earlier agent left, and register. A pool that is out of reach is tried again for ever."""
        make_private_folder(self._folder.path)
        self._folder_lock = lock_folder(self._folder.path)
        if self._folder_lock is None:
            msg = f"another agent works in {self._folder.path}; stop it, or give this one its own --run-dir"
            raise ConfigurationError(msg)
        self._seen = self._clock.monotonic()
        self._host.adopt()
        self._loops.spawn("heartbeat", self._heartbeat_loop())
        self._loops.spawn("events", self._events_loop())
        self._loops.spawn("reconcile", self._reconcile_loop())
        if self._nvml is not None and self._machine.gpus:
            self._monitor = GpuMonitor(self._nvml, self._machine.gpus, self._on_health, self._clock)
            self._monitor.start()
            self._loops.spawn("health", self._monitor.poll_loop())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_first_contact_seconds, self._limits.ttl)):
                await self._is_registered.wait()

    async def wait(self) -> None:
        """Return never; raise what ended a loop."""
        await self._loops.wait()

    async def stop(self, deadline: Deadline) -> None:
        """Let the workers finish and give their leases back, or leave them to the next agent."""
        if self._folder_lock is None:
            return
        if not self.settings.leave_workers:
            await self._drain(deadline)
        await self._loops.stop()
        if self._monitor is not None:
            await self._monitor.stop()
            self._monitor = None
        self._host.leave()
        os.close(self._folder_lock)
        self._folder_lock = None

    async def _drain(self, deadline: Deadline) -> None:
        self._is_stopping = True
        self._limits = replace(
            self._limits, drain=min(self._limits.drain, max(0.0, deadline.remaining - _settle_reserve_seconds))
        )
        await self._refuse_grants()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline.remaining - 1.0)):
                await self._is_idle.wait()
        for name, view in self._host.views().items():
            if not view.is_gone:
                log.warning("%s did not end in time and is killed", name)
                self._host.kill(name)

    async def _refuse_grants(self) -> None:
        """No new lease for a node that goes; its next registration says that the devices are well again."""
        self._unsaid |= {device.id: "unhealthy" for device in self._devices if device.health != "lost"}
        if self._registration is not None:
            with contextlib.suppress(TransportError):
                await self._say_health(self._registration)

    # --- what the pool says -------------------------------------------------------------------------------------------

    async def _heartbeat_loop(self) -> None:
        while True:
            self._poke.clear()
            try:
                await self._beat()
            except TransportError as exc:
                metrics.heartbeat_failures.inc()
                level = logging.DEBUG if self._is_cut_off else logging.WARNING  # once, not once a second
                log.log(level, "the pool is out of reach: %s", exc)
                self._is_cut_off = True
            self._folder.trim_logs(int(self.settings.log_mib * 1024 * 1024))
            self._folder.prune_logs(self.settings.logs_kept, self._host.names())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.heartbeat_seconds):
                    await self._poke.wait()

    async def _beat(self) -> None:
        registration = self._registration or await self._register()
        if registration is None:
            return
        await self._say_health(registration)
        started = self._clock.monotonic()
        stats = {
            "workers": float(len(self._host.names())),
            "load": os.getloadavg()[0],
            "memory_used_mib": float(cpu.used_memory_mib()),
        }
        answer = await self._pool.heartbeat(self.settings.node, registration.incarnation, stats)
        if isinstance(answer, Refusal):
            self._on_refused_beat(answer)
            return
        self._leases = {lease.id: self._corrected(lease) for lease in answer if lease.id not in self._ended}
        self._seen = started
        if self._is_cut_off:
            log.info("the pool is back")
            self._is_cut_off = False
        self._is_registered.set()
        self._wake.set()

    async def _say_health(self, registration: Registration) -> None:
        for device, health in list(self._unsaid.items()):
            await self._pool.set_device_health(self.settings.node, registration.incarnation, device, health)
            if self._unsaid.get(device) == health:
                del self._unsaid[device]

    def _corrected(self, lease: Lease) -> Lease:
        """The answer may be older than a release of ours that was carried out meanwhile."""
        return msgspec.structs.replace(lease, state="quarantine") if lease.id in self._given_up else lease

    async def _register(self) -> Registration | None:
        answer = await self._pool.register_node(node_report(self._machine), self._devices)
        if isinstance(answer, Refusal):
            log.error("the pool does not take this node: %s", answer)
            return None
        metrics.registrations.inc()
        log.info("registered %s with %s", self.settings.node, ", ".join(device.id for device in self._devices))
        self._registration = answer
        return answer

    def _on_refused_beat(self, refusal: Refusal) -> None:
        log.warning("the pool refused a heartbeat (%s); registering again", refusal)
        self._registration = None
        self._poke.set()
        if refusal.code != "FENCED":
            return
        now = self._clock.monotonic()
        self._takeovers = [*(then for then in self._takeovers if now - then < _takeover_window_seconds), now]
        if len(self._takeovers) > _takeovers_tolerated:
            msg = f"another agent registers node {self.settings.node} again and again; give each machine its own name"
            raise ConfigurationError(msg)

    async def _events_loop(self) -> None:
        last = "$"
        while True:
            try:
                last, events = await self._pool.events(last, _event_wait_ms)
            except TransportError:
                await asyncio.sleep(self.settings.heartbeat_seconds)
                continue
            if any(self._concerns_us(event) for event in events):
                self._poke.set()

    def _concerns_us(self, event: Event) -> bool:
        return event.node == self.settings.node and event.kind in ("commit", "end", "drain", "node")

    def _on_health(self, device: str, health: Health) -> None:
        self._devices = tuple(
            msgspec.structs.replace(known, health=health) if known.id == device else known for known in self._devices
        )
        self._unsaid[device] = health
        self._poke.set()

    # --- what is done about it ----------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        self._wake.set()

    async def _reconcile_loop(self) -> None:
        try:
            while True:
                self._wake.clear()
                due = await self._reconcile_once()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due):
                        await self._wake.wait()
        finally:
            self._is_idle.set()  # a stop would wait for it in vain

    async def _reconcile_once(self) -> float:
        """Bring processes and leases together; returns how long nothing but news can matter."""
        now = self._clock.monotonic()
        self._note_fence(now)
        actions = reconcile(
            self._leases,
            self._host.views(),
            now,
            seen=self._seen,
            limits=self._limits,
            is_stopping=self._is_stopping,
        )
        await self._apply(actions)
        views = self._host.views()
        metrics.workers.set(sum(not view.is_gone for view in views.values()))
        if self._is_stopping and not views and (not self._leases or now - self._seen >= self._limits.suspect):
            self._is_idle.set()
        now = self._clock.monotonic()
        due = next_due(views, now)
        return self.settings.heartbeat_seconds if due is None else min(due - now, self.settings.heartbeat_seconds)

    def _note_fence(self, now: float) -> None:
        is_fenced = now - self._seen >= self._limits.ttl
        if is_fenced and not self._is_fenced:
            log.error(
                "the pool was out of reach for %.1f s: every lease is over, all workers are killed", now - self._seen
            )
            metrics.self_fences.inc()
        self._is_fenced = is_fenced

    async def _apply(self, actions: Sequence[Action]) -> None:
        """Processes first, which cannot block; then what the pool has to be told, each lease in order."""
        steps: dict[str, list[Release | Confirm]] = {}
        ended: dict[str, float] = {}
        for action in actions:
            if isinstance(action, Release | Confirm):
                steps.setdefault(action.lease, []).append(action)
            elif isinstance(action, CleanUp):
                moment = self._host.clean_up(action.lease)
                if moment is not None:
                    ended[action.lease] = moment
            else:
                self._act(action, steps)
        await asyncio.gather(*(self._tell(name, todo, ended.get(name)) for name, todo in steps.items()))

    def _act(
        self, action: StartWorker | StartEngine | StopWorker | KillWorker, steps: dict[str, list[Release | Confirm]]
    ) -> None:
        name = action.lease.id if isinstance(action, StartWorker) else action.lease
        try:
            match action:
                case StartWorker(lease):
                    log.info("starting the worker of %s for %s", name, lease.deployment)
                    self._host.start(lease)
                case StartEngine():
                    log.warning("the engine of %s has ended; starting it again", name)
                    self._host.start_engine(name)
                case StopWorker(_, grace, with_signal):
                    self._host.stop(name, grace, with_signal=with_signal)
                case KillWorker():
                    self._host.kill(name)
        except ShareBusy as exc:
            log.warning("%s waits: %s", name, exc)
        except (HeadraceError, OSError) as exc:
            metrics.start_failures.inc()
            log.error("%s cannot be started: %s", name, exc)  # noqa: TRY400 - the sentence says it all
            if isinstance(action, StartWorker):
                steps.setdefault(name, []).append(Release(name, action.lease.token, f"could not be started: {exc}"))

    async def _tell(self, name: str, steps: Sequence[Release | Confirm], ended_at: float | None) -> None:
        try:
            for step in steps:
                if isinstance(step, Release):
                    log.info("releasing %s: %s", name, step.reason)
                    await self._pool.release(name, step.token, step.reason)  # refused when it was over already
                    self._note_release(name)
                elif await self._confirm(step):
                    if ended_at is not None:
                        metrics.confirm_seconds.observe(self._clock.monotonic() - ended_at)
                    metrics.confirms.inc()
        except TransportError as exc:
            log.warning("%s could not be settled with the pool: %s", name, exc)

    def _note_release(self, name: str) -> None:
        self._host.released(name)
        _remember(self._given_up, name)
        if self._leases is not None and name in self._leases:
            self._leases[name] = self._corrected(self._leases[name])
        self._wake.set()

    async def _confirm(self, step: Confirm) -> bool:
        refusal = await self._pool.confirm(step.lease, step.token)
        if refusal is not None and refusal.code == "NO":  # it has not ended for the pool: release it again
            self._given_up.pop(step.lease, None)
            return False
        _remember(self._ended, step.lease)
        if self._leases is not None:
            self._leases.pop(step.lease, None)
        log.info("%s is over", step.lease)
        return refusal is None


def _remember(names: dict[str, None], name: str) -> None:
    names[name] = None
    if len(names) > _remembered_ends:
        del names[next(iter(names))]
