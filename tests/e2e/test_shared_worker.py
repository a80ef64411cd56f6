"""Several models in one worker: one engine process, one lease, and each model as if it had them to itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import yaml

from contracts.messages import Status
from contracts.names import ModelVersion
from deploy.cli.readiness import await_ready
from tests.e2e.fleet_kit import AppliedFleet, applied_fleet, apply
from tests.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

NAPPING = """
import os
import time

import numpy as np


class Model:
    def infer(self, inputs):
        for wish in inputs["x"].ravel().tolist():
            if wish == -1:
                os._exit(9)
        if {limit} and len(inputs["x"]) > {limit} and inputs["x"].any():
            raise MemoryError
        time.sleep({seconds})
        return {{"y": inputs["x"] * {factor}}}
"""


def write_model(root: Path, name: str, *, seconds: float, factor: int, limit: int = 0) -> None:
    folder = root / "models" / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(NAPPING.format(seconds=seconds, factor=factor, limit=limit))
    side = [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    spec = {
        "name": name, "version": 1, "backend": "python", "inputs": side,
        "outputs": [{**side[0], "name": "y"}], "batching": {"max_batch_size": 8},
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))


async def group(fleet: AppliedFleet, *deployments: Sequence[str], workers: int = 1) -> None:
    """Have these models and no others served, so grouped, and wait until that is all there is."""
    content = [
        {"models": list(models), "workers": {"min": workers, "max": 2}, "allow_code": True,
         "device": {"kind": "cpu", "compute": 10}}
        for models in deployments
    ]  # fmt: skip
    path = fleet.root / "fleet.yaml"
    path.write_text(yaml.safe_dump({"deployments": content}))
    await apply(fleet.control.registry, path, prune=True)
    await await_ready(fleet.control, [models[0] for models in deployments], 60)
    wanted = sorted(tuple(models) for models in deployments for _ in range(workers))

    async def is_all() -> bool:
        return sorted(lease.models for lease in await fleet.leases()) == wanted

    await wait_until(is_all, f"not served as {wanted}", timeout=60)


async def ask(fleet: AppliedFleet, model: str, *values: float) -> list[float]:
    found = (await fleet.client.infer(model, {"x": np.array([values], np.float32).T}))["y"]
    return [float(value) for value in found.to_numpy().ravel()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AppliedFleet]:
    root = tmp_path_factory.mktemp("shared")
    write_model(root, "quick", seconds=0.001, factor=2)
    write_model(root, "slow", seconds=0.05, factor=3)
    write_model(root, "other", seconds=0.001, factor=5)
    write_model(root, "greedy", seconds=0.001, factor=7, limit=4)
    async with applied_fleet(root) as running:
        yield running


async def test_models_share_one_engine_and_each_answers_its_own_requests(fleet: AppliedFleet) -> None:
    await group(fleet, ["quick@1", "slow@1", "other@1"])
    (lease,) = await fleet.leases()
    assert lease.models == ("quick@1", "slow@1", "other@1")
    await wait_until(lambda: len(fleet.engines()) == 1, "not one engine")  # that of another test may be ending
    answers = await asyncio.gather(*(ask(fleet, f"{name}@1", 1, 2) for name in ("quick", "slow", "other")))
    assert answers == [[2, 4], [3, 6], [5, 10]]
    await kills_are_blamed_on_the_request_alone(fleet)
    await a_slow_model_does_not_crowd_out_a_quick_one(fleet)
    await models_are_regrouped_under_load(fleet)


async def test_a_device_without_memory_for_large_batches_gets_smaller_ones(fleet: AppliedFleet) -> None:
    await group(fleet, ["quick@1", "greedy@1"])
    assert await ask(fleet, "greedy@1", *range(8)) == [7 * value for value in range(8)]
    key = ModelVersion("greedy", 1)
    (lease,) = await fleet.leases()
    await wait_until(lambda: told(fleet, key, {lease.id: 4}))
    answers = await asyncio.gather(*(ask(fleet, "greedy@1", value) for value in range(40)))
    assert answers == [[7 * value] for value in range(40)]
    assert await fleet.control.registry.ceilings(ModelVersion("quick", 1)) == {}


async def told(fleet: AppliedFleet, key: ModelVersion, ceilings: dict[str, int]) -> bool:
    return await fleet.control.registry.ceilings(key) == ceilings


async def kills_are_blamed_on_the_request_alone(fleet: AppliedFleet) -> None:
    (engine,) = fleet.engines()
    os.kill(engine.pid, signal.SIGKILL)
    both = await asyncio.gather(ask(fleet, "quick@1", 7), ask(fleet, "other@1", 7))
    assert list(both) == [[14], [35]]
    names = ["quick", "slow", "other"] * 20
    good, bad = await asyncio.gather(
        asyncio.gather(*(ask(fleet, f"{name}@1", 3) for name in names)),
        fleet.client.infer("slow@1", {"x": np.array([[-1]], np.float32)}, ttl_seconds=60, raise_on_error=False),
    )
    assert bad.status is Status.POISON
    assert {answer[0] for answer in good} == {6, 9, 15}


async def a_slow_model_does_not_crowd_out_a_quick_one(fleet: AppliedFleet) -> None:
    busy, times = True, []

    async def keep_busy() -> None:
        while busy:
            await ask(fleet, "slow@1", *range(8))

    async with asyncio.TaskGroup() as crowd:
        for number in range(16):
            crowd.create_task(keep_busy(), name=f"crowd {number}")
        for value in range(20):
            started = time.perf_counter()
            assert await ask(fleet, "quick@1", value) == [2 * value]
            times.append(time.perf_counter() - started)
        busy = False
    # 16 batches of 50 ms wait at any time; behind the running and the ready one it is the quick model's turn.
    assert sorted(times)[len(times) // 2] < 0.3


async def models_are_regrouped_under_load(fleet: AppliedFleet) -> None:
    stop = asyncio.Event()
    answered = dict.fromkeys((2, 3, 5), 0)

    async def ask_on(name: str, factor: int) -> None:
        while not stop.is_set():
            assert await ask(fleet, f"{name}@1", 1) == [factor]
            answered[factor] += 1

    async with asyncio.TaskGroup() as asking:
        for one in (("quick", 2), ("slow", 3), ("other", 5)):
            asking.create_task(ask_on(*one), name=f"ask {one[0]}")
        await group(fleet, ["quick@1"], ["slow@1", "other@1"])
        before = dict(answered)
        await wait_until(lambda: all(answered[factor] > before[factor] + 3 for factor in answered))
        assert sorted(lease.models for lease in await fleet.leases()) == [("quick@1",), ("slow@1", "other@1")]
        await group(fleet, ["quick@1", "slow@1", "other@1"], workers=2)
        stop.set()
    assert [lease.models for lease in await fleet.leases()] == [("quick@1", "slow@1", "other@1")] * 2
