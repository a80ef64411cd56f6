"""What a stack on one machine survives, and what it leaves behind: its data, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from contracts.errors import ConfigurationError
from deploy.cli.connection import open_control
from deploy.cli.readiness import await_ready
from deploy.embedded.guardian import exists
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.e2e.conftest import ROOT, Terminal, Up
from tests.e2e.fleet_kit import apply, client_settings
from tests.helpers import wait_until, wait_until_sync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MODELS = ROOT / "deploy" / "fleet" / "models"
FLEET = f"""
models: {MODELS}
deployments:
  - {{model: digits, version: 1, device: {{kind: cpu, compute: 25}}}}
"""


async def answers(stack: EmbeddedStack) -> None:
    async with InferenceClient(client_settings(stack)) as client:
        response = await client.infer("digits@1", {"image": np.zeros((1, 64), np.float32)})
        assert response["scores"].shape == (1, 10)


async def ready(stack: EmbeddedStack, fleet: Path | None = None) -> None:
    async with open_control(stack.settings()) as control:
        if fleet is not None:
            await apply(control.registry, fleet)
        await await_ready(control, ["digits@1"], 60)


async def test_services_that_die_are_started_again_and_a_crash_loses_nothing(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(FLEET)
    said: list[str] = []
    stack = EmbeddedStack(tmp_path / "data", kafka="embedded", say=said.append)
    await stack.start()
    try:
        await ready(stack, fleet)
        await answers(stack)
        before = {name: child.pid for name, child in stack.processes.items()}
        for name in ("scheduler", "agent"):
            stack.kill(name)
        await wait_until(lambda: all(c.is_running and c.pid != before[n] for n, c in stack.processes.items()))
        await answers(stack)  # workers outlive both
        told = json.loads((tmp_path / "data" / "stack.json").read_text())["pids"]
        assert told["agent"] == stack.processes["agent"].pid
    finally:
        await stack.kill_all()
    assert sorted(line.partition(" ")[0] for line in said[2:]) == ["agent", "scheduler"]

    async with EmbeddedStack(tmp_path / "data", kafka="embedded") as again:
        await ready(again)  # nobody applied anything again
        await answers(again)
        with pytest.raises(ConfigurationError, match=r"runs on .* already"):
            await EmbeddedStack(tmp_path / "data").start()


async def test_a_service_that_cannot_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    stack = EmbeddedStack(tmp_path, kafka="embedded", env={"HEADRACE_SCHEDULER__TICK_SECONDS": "never"})
    with pytest.raises(Exception, match=r"scheduler ended .* while it started") as failed:
        await stack.start()
    assert "tick_seconds" in str(failed.value)


def test_nothing_outlives_a_stack_that_is_killed(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(FLEET)
    terminal = Terminal(tmp_path)
    with Up(terminal, f"headrace up --kafka embedded --fleet {fleet}") as running:
        running.wait_ready()
        pids = {child.pid for child in psutil.Process(running.process.pid).children(recursive=True)}
        os.kill(running.process.pid, 9)
        running.end()
    assert len(pids) >= 7  # guardian, broker, Redis, scheduler, agent, ingest, engine
    wait_until_sync(lambda: not any(exists(pid) for pid in pids), f"some of {pids} live on", timeout=30)
    assert terminal.run("headrace status").returncode == 2
