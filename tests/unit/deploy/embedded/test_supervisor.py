"""Children that end are started again, sooner the first time than the next ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.errors import TransportError
from deploy.embedded.processes import Child
from deploy.embedded.supervisor import LONGEST_DELAY_SECONDS, Supervisor, restart_delay
from tests.helpers import wait_until

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    child = Child("sleeper", SLEEPER, log=tmp_path / "sleeper.log", ready=lambda: True)
    child.start()
    yield child
    child.kill()


def test_the_first_death_is_answered_at_once_and_the_next_ones_later_and_later() -> None:
    assert restart_delay([10.0], 10.0) == 0.0
    delays = [restart_delay([10.0] * deaths, 10.0) for deaths in range(2, 12)]
    assert delays == sorted(delays)
    assert 0 < delays[0] < 1
    assert delays[-1] == LONGEST_DELAY_SECONDS


def test_old_deaths_are_forgiven() -> None:
    assert restart_delay([10.0, 10.0, 10.0, 100.0], 100.0) == 0.0


async def test_a_killed_child_runs_again_and_the_operator_is_told(child: Child) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    supervisor.keep(child)
    first = child.pid
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(supervisor.watch_loop())
        child.kill()
        await wait_until(lambda: child.is_running and child.pid != first)
        watching.cancel()
    assert said == ["sleeper ended (SIGKILL), starting it again"]


async def test_what_a_child_said_last_is_told_and_kept(tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "broken.log"
    child = Child("broken", [sys.executable, "-S", "-c", "raise SystemExit('no disk')"], log=log, ready=lambda: True)
    child.spawn()
    await wait_until(lambda: not child.is_running)
    supervisor = Supervisor(said.append)
    supervisor.keep(child)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(supervisor.watch_loop())
        await wait_until(lambda: len(said) == 2)
        watching.cancel()
    child.stop()
    assert said[0] == "broken ended (exit status 1), starting it again; its last words: no disk"
    assert "starting it again in 0.25 s" in said[1]
    assert log.with_name("broken.previous.log").read_text() == "no disk\n"


async def test_a_child_that_is_stopped_on_purpose_is_left_alone(child: Child) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    supervisor.keep(child)
    supervisor.release(child)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(supervisor.watch_loop())
        child.kill()
        await asyncio.sleep(0.15)
        watching.cancel()
    assert not said
    assert not child.is_running


async def test_a_start_that_fails_is_told_and_tried_again(child: Child) -> None:
    said: list[str] = []

    def restart() -> None:
        if len(said) < 2:
            msg = "the port is taken"
            raise TransportError(msg)
        child.spawn()

    supervisor = Supervisor(said.append)
    supervisor.keep(child, restart)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(supervisor.watch_loop())
        child.kill()
        await wait_until(lambda: child.is_running)
        watching.cancel()
    assert said[1] == "sleeper could not be started: the port is taken"
