"""Several models in one worker: one engine process, one lease, and each model as if it had them to itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from contracts.messages import Status
from contracts.pool import Lease
from contracts.settings import load_settings
from deploy.cli.apply import carry_out, plan_changes
from deploy.cli.connection import ControlPlane, open_control
from deploy.cli.readiness import await_ready
from deploy.cli.repository import read_fleet
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from producer.settings import ClientSettings
from tests.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NAPPING = """
import os
import time

import numpy as np


class Model:
    def infer(self, inputs):
        for wish in inputs["x"].ravel().tolist():
            if wish == -1:
                os._exit(9)
        time.sleep({seconds})
        return {{"y": inputs["x"] * {factor}}}
"""


def write_model(root: Path, name: str, *, seconds: float, factor: int) -> None:
    folder = root / "models" / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(NAPPING.format(seconds=seconds, factor=factor))
    side = [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    spec = {
        "name": name, "version": 1, "backend": "python", "inputs": side,
        "outputs": [{**side[0], "name": "y"}], "batching": {"max_batch_size": 8},
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))


class Fleet:
    """A stack on which fleets are applied, and a client of it."""

    def __init__(self, root: Path, stack: EmbeddedStack, control: ControlPlane, client: InferenceClient) -> None:
        self.root, self.stack, self.control, self.client = root, stack, control, client

    async def apply(self, *deployments: Sequence[str], workers: int = 1, wait: bool = True) -> None:
        content = [
            {"models": list(models), "workers": {"min": workers, "max": 2}, "allow_code": True,
             "device": {"kind": "cpu", "compute": 10}}
            for models in deployments
        ]  # fmt: skip
        path = self.root / "fleet.yaml"
        path.write_text(yaml.safe_dump({"deployments": content}))
        wanted = read_fleet(path)
        found = await plan_changes(self.control.registry, wanted, prune=True)
        await carry_out(self.control.registry, wanted, found)
        if wait:
            await await_ready(self.control, [models[0] for models in deployments], 60)

    async def leases(self) -> list[Lease]:
        return [lease for lease in (await self.control.leases.state()).leases.values() if lease.is_live]

    async def ask(self, model: str, *values: float) -> list[float]:
        found = (await self.client.infer(model, {"x": np.array([values], np.float32).T}))["y"]
        return [float(value) for value in found.to_numpy().ravel()]

    def engines(self) -> list[psutil.Process]:
        agent = psutil.Process(self.stack.processes["agent"].pid)
        return [child for child in agent.children(recursive=True) if "workers.engine" in child.cmdline()]


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[Fleet]:
    write_model(root, "quick", seconds=0.001, factor=2)
    write_model(root, "slow", seconds=0.05, factor=3)
    write_model(root, "other", seconds=0.001, factor=5)
    async with EmbeddedStack(root / "data", kafka="embedded") as stack, open_control(stack.settings()) as control:
        known = stack.settings()
        settings = load_settings(ClientSettings, kafka=known.kafka.model_dump(), redis=known.redis.model_dump())
        async with InferenceClient(settings) as client:
            yield Fleet(root, stack, control, client)


async def test_models_share_one_engine_and_each_answers_its_own_requests(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        await fleet.apply(["quick@1", "slow@1", "other@1"])
        (lease,) = await fleet.leases()
        assert lease.models == ("quick@1", "slow@1", "other@1")
        assert len(fleet.engines()) == 1
        answers = await asyncio.gather(*(fleet.ask(f"{name}@1", 1, 2) for name in ("quick", "slow", "other")))
        assert answers == [[2, 4], [3, 6], [5, 10]]
        await kills_are_blamed_on_the_request_alone(fleet)
        await a_slow_model_does_not_crowd_out_a_quick_one(fleet)
        await models_are_regrouped_under_load(fleet)


async def kills_are_blamed_on_the_request_alone(fleet: Fleet) -> None:
    (engine,) = fleet.engines()
    os.kill(engine.pid, signal.SIGKILL)
    both = await asyncio.gather(fleet.ask("quick@1", 7), fleet.ask("other@1", 7))
    assert list(both) == [[14], [35]]
    names = ["quick", "slow", "other"] * 20
    good, bad = await asyncio.gather(
        asyncio.gather(*(fleet.ask(f"{name}@1", 3) for name in names)),
        fleet.client.infer("slow@1", {"x": np.array([[-1]], np.float32)}, ttl_seconds=60, raise_on_error=False),
    )
    assert bad.status is Status.POISON
    assert {answer[0] for answer in good} == {6, 9, 15}


async def a_slow_model_does_not_crowd_out_a_quick_one(fleet: Fleet) -> None:
    busy, times = True, []

    async def keep_busy() -> None:
        while busy:
            await fleet.ask("slow@1", *range(8))

    async with asyncio.TaskGroup() as crowd:
        for number in range(16):
            crowd.create_task(keep_busy(), name=f"crowd {number}")
        for value in range(20):
            started = time.perf_counter()
            assert await fleet.ask("quick@1", value) == [2 * value]
            times.append(time.perf_counter() - started)
        busy = False
    # 16 batches of 50 ms wait at any time; behind the running and the ready one it is the quick model's turn.
    assert sorted(times)[len(times) // 2] < 0.3


async def models_are_regrouped_under_load(fleet: Fleet) -> None:
    stop = asyncio.Event()
    answered = dict.fromkeys((2, 3, 5), 0)

    async def ask_on(name: str, factor: int) -> None:
        while not stop.is_set():
            assert await fleet.ask(f"{name}@1", 1) == [factor]
            answered[factor] += 1

    async with asyncio.TaskGroup() as asking:
        for one in (("quick", 2), ("slow", 3), ("other", 5)):
            asking.create_task(ask_on(*one), name=f"ask {one[0]}")
        await fleet.apply(["quick@1"], ["slow@1", "other@1"])
        before = dict(answered)
        await wait_until(lambda: all(answered[factor] > before[factor] + 3 for factor in answered))
        assert sorted(lease.models for lease in await fleet.leases()) == [("quick@1",), ("slow@1", "other@1")]
        await fleet.apply(["quick@1", "slow@1", "other@1"], workers=2)
        stop.set()
    assert [lease.models for lease in await fleet.leases()] == [("quick@1", "slow@1", "other@1")] * 2
