"""The demo itself: start a stack, ask for every image twice, kill a worker in the middle of the second run, stop.

The order of what is shown is the order of what happens; every figure comes from the replies or from the pool.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from msgspec import Struct

from contracts.errors import TransportError
from contracts.names import ModelVersion
from contracts.pool import PoolState
from contracts.settings import load_settings
from contracts.topics import requests
from deploy.cli.apply import carry_out, plan_changes
from deploy.cli.connection import ControlPlane, open_control
from deploy.cli.lag import Lags
from deploy.cli.readiness import await_ready
from deploy.cli.repository import read_fleet
from deploy.demo.images import FLEET_FILE, Digits, load_digits
from deploy.demo.report import Answer, RunReport, report_run
from deploy.embedded.servers import KafkaChoice
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from producer.settings import ClientSettings

VERSIONS = (1, 2)
IN_FLIGHT = 128  # for each version
SCALED = ModelVersion("digits", 2)
_WORKERS = 2
_KILL_AT = 0.4  # of the second run
_READY_SECONDS = 60.0
_TTL_SECONDS = 30.0
_SETTLE_SECONDS = 10.0
_LOOK_SECONDS = 0.01


class Screen(Protocol):
    """Where the demo shows itself."""

    def say(self, line: str) -> None:
        """A line about what happens next."""

    def begin(self, title: str, total: int) -> Callable[[], None]:
        """Start a progress bar; the callable moves it on by one."""

    def end(self) -> None:
        """Take the progress bar away."""

    def run(self, title: str, report: RunReport) -> None:
        """The figures of a run."""

    def recovery(self, recovery: Recovery) -> None:
        """What became of the killed worker's part."""


class Recovery(Struct, frozen=True, kw_only=True):
    """A worker that was killed and what happened then; times in seconds since the SIGKILL."""

    worker: str
    pids: tuple[int, ...]
    partitions: int
    """How many it drained."""
    in_flight: int
    """Requests without an answer at that moment."""
    taken_over_seconds: float
    """Until all its partitions were drained by somebody else."""
    longest_wait_ms: float
    """The longest that any request of the run waited for its answer."""
    replaced_seconds: float
    """Until a new worker served in its place."""


class Outcome(Struct, frozen=True, kw_only=True):
    """Everything that the demo found."""

    kafka: str
    redis: str
    first: RunReport
    second: RunReport
    recovery: Recovery
    left_in_log: int
    seconds: float


class Demo:
    """One demo on a stack of its own, in a folder that is removed afterwards."""

    def __init__(self, screen: Screen, *, kafka: KafkaChoice | None = None, redis: str | None = None) -> None:
        self._screen = screen
        self._kafka, self._redis = kafka, redis
        self._digits: Digits = load_digits()

    async def run(self) -> Outcome:
        """Raises HeadraceError when something could not be done at all; wrong figures are the outcome's."""
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
        name = f"demo-{token_hex(3)}"  # a configured Kafka or Redis may hold what is not ours
        env = {
            "HEADRACE_KAFKA__PREFIX": name,
            "HEADRACE_REDIS__PREFIX": name,
            "HEADRACE_AGENT__LOCK_DIR": str(folder / "locks"),
            "HEADRACE_AGENT__GPUS": "false",
        }
        stack = EmbeddedStack(folder, kafka=self._kafka, redis=self._redis, env=env, say=self._screen.say)
        try:
            await stack.start()
            async with open_control(stack.settings()) as control:
                found = await self._on(stack, control)
            self._screen.say("Stopping everything.")
        finally:
            await stack.stop()
            shutil.rmtree(folder, ignore_errors=True)
        first, second, recovery, left = found
        return Outcome(
            kafka=stack.kafka.name,
            redis=stack.redis.name,
            first=first,
            second=second,
            recovery=recovery,
            left_in_log=left,
            seconds=round(time.monotonic() - started, 2),
        )

    async def _on(self, stack: EmbeddedStack, control: ControlPlane) -> tuple[RunReport, RunReport, Recovery, int]:
        fleet = read_fleet(FLEET_FILE)
        await carry_out(control.registry, fleet, await plan_changes(control.registry, fleet))
        names = [str(deployment.key) for deployment in fleet.spec.deployments]
        await await_ready(control, names, _READY_SECONDS, say=self._screen.say)
        known = control.settings
        settings = load_settings(
            ClientSettings, kafka=known.kafka.model_dump(), redis=known.redis.model_dump(), inbox={"name": "demo"}
        )
        async with InferenceClient(settings) as client:
            first = await self._ask_all(client, "Every image to both versions")
            self._screen.run("Every image to both versions", first)
            self._screen.say(f"Scaling {SCALED} to {_WORKERS} workers.")
            await control.registry.set_manual(SCALED, _WORKERS, "demo")
            await await_ready(control, names, _READY_SECONDS, say=self._screen.say)
            kill = Kill(stack, control, self._screen)
            title = f"The same again, with a worker of {SCALED} killed in mid-run"
            second = await self._ask_all(client, title, kill)
            self._screen.run(title, second)
            recovery = await kill.recovery(second)
            self._screen.recovery(recovery)
            return first, second, recovery, await _left_in_log(control)

    async def _ask_all(self, client: InferenceClient, title: str, kill: Kill | None = None) -> RunReport:
        total = len(self._digits.images) * len(VERSIONS)
        run = Run(client, self._digits, self._screen.begin(title, total))
        before = client.stats()
        started = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(kill.watch(run, int(total * _KILL_AT)), name="kill") if kill else None
                await run.ask_all()
                seconds = time.monotonic() - started
                if killing is not None:
                    await killing
        finally:
            self._screen.end()
        duplicates = client.stats().duplicate - before.duplicate
        asked = dict.fromkeys(VERSIONS, len(self._digits.images))
        return report_run(run.answers, self._digits, asked, round(seconds, 3), duplicates)


class Run:
    """Every image to both versions once, each under an id of its own, and all that came back."""

    def __init__(self, client: InferenceClient, digits: Digits, advance: Callable[[], None]) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.in_flight = 0
        self.answered = 0
        self.moved = asyncio.Event()
        self._client, self._digits, self._advance = client, digits, advance
        self._stem = token_hex(4)

    async def ask_all(self) -> None:
        """Return when everything is answered."""
        async with asyncio.TaskGroup() as group:
            for version in VERSIONS:
                group.create_task(self._ask_version(version), name=f"digits@{version}")

    async def _ask_version(self, version: int) -> None:
        window = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            for image in range(len(self._digits.images)):
                await window.acquire()
                group.create_task(self._ask(version, image, window), name=f"image {image}")

    async def _ask(self, version: int, image: int, window: asyncio.Semaphore) -> None:
        name = f"{self._stem}-{version}-{image}"
        row = {"image": self._digits.images[image : image + 1]}
        self.in_flight += 1
        try:
            response = await self._client.infer(
                "digits", row, version=version, request_id=name, ttl_seconds=_TTL_SECONDS, raise_on_error=False
            )
        finally:
            self.in_flight -= 1
            window.release()
        self.answers.setdefault(name, []).append(Answer(version, image, response))
        self.answered += 1
        self.moved.set()
        self._advance()


class Kill:
    """Ends one worker with SIGKILL in the middle of a run, and times what the fleet does about it."""

    def __init__(self, stack: EmbeddedStack, control: ControlPlane, screen: Screen) -> None:
        self._stack, self._control, self._screen = stack, control, screen
        self._found: dict[str, Any] = {}

    async def watch(self, run: Run, at: int) -> None:
        """Kill when so many are answered; return when the worker's partitions are drained again."""
        topic = requests(self._control.settings.kafka.prefix, SCALED.model, SCALED.version)
        state = await self._control.leases.state()
        leases = [lease for lease in state.leases_of(str(SCALED)) if lease.state == "active"]
        victim = max(leases, key=lambda lease: len(state.topics[topic].owned_by(lease.id)))
        pids = self._stack.worker_pids(victim.id)
        while run.answered < at:
            run.moved.clear()
            await run.moved.wait()
        self._killed = time.monotonic()
        self._stack.kill_worker(victim.id)
        self._found = {
            "worker": victim.id,
            "pids": tuple(pids),
            "partitions": len(state.topics[topic].owned_by(victim.id)),
            "in_flight": run.in_flight,
        }
        if not pids:
            msg = f"no process of worker {victim.id} was found to kill"
            raise TransportError(msg)
        count = len(state.topics[topic].own)
        self._found["taken_over_seconds"] = await self._until(lambda now: _is_taken_over(now, topic, count, victim.id))

    async def recovery(self, report: RunReport) -> Recovery:
        """The whole story, once a new worker is ready."""
        self._screen.say("Waiting for the worker that replaces it.")
        replaced = await self._until(_has_enough_workers)
        longest = max(version.longest_ms for version in report.versions)
        return Recovery(**self._found, longest_wait_ms=longest, replaced_seconds=replaced)

    async def _until(self, is_so: Callable[[PoolState], bool]) -> float:
        while not is_so(await self._control.leases.state()):
            if time.monotonic() - self._killed > _READY_SECONDS:
                msg = f"the fleet did not recover within {_READY_SECONDS:.0f} s"
                raise TransportError(msg)
            await asyncio.sleep(_LOOK_SECONDS)
        return round(time.monotonic() - self._killed, 3)


def _is_taken_over(state: PoolState, topic: str, partitions: int, victim: str) -> bool:
    own = state.topics[topic].own
    return len(own) == partitions and victim not in {owner for owner, _ in own.values()}


def _has_enough_workers(state: PoolState) -> bool:
    return sum(1 for lease in state.leases_of(str(SCALED)) if lease.state == "active") >= _WORKERS


async def _left_in_log(control: ControlPlane) -> int:
    """Requests that no worker has committed yet, after giving them the time that a commit takes."""
    lags = Lags(control.settings.kafka)
    deployed = {key: spec.partitions for key, spec in (await control.registry.deployments()).items()}
    until = time.monotonic() + _SETTLE_SECONDS
    try:
        while True:
            found: Mapping[ModelVersion, int | None] = await lags.read(deployed)
            left = sum(lag or 0 for lag in found.values())
            if not left or time.monotonic() > until:
                return left
            await asyncio.sleep(10 * _LOOK_SECONDS)
    finally:
        await lags.close()
