"""Fused pipelines on a running stack: one worker, one answer for each job, whatever its steps do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from contracts.messages import Response, Status
from deploy.cli.readiness import await_ready
from tests.e2e.fleet_kit import AppliedFleet, applied_fleet, apply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MODEL = """
import os
import time
from pathlib import Path

import numpy as np

# Not in its own folder, whose files are what was registered.
TRIED = Path(__file__).parents[2] / f"{Path(__file__).parent.parent.name}.tried"


class Model:
    def infer(self, inputs):
        x = inputs["x"]
        for wish in x.ravel().tolist():
            if wish == -1:
                raise ValueError("as asked")
            if wish == -2:
                os._exit(9)
            if wish == -3:
                time.sleep(3)
            if wish == -4 and not TRIED.exists():
                TRIED.write_text("once")
                raise MemoryError
        return {"y": x * {factor} + {term}}
""".replace("{factor}", "FACTOR").replace("{term}", "TERM")
TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 1]}
STEPS: dict[str, Any] = {
    "double": {"model": "double@1", "inputs": {"x": "input.x"}},
    "plus": {"model": "plus@1", "inputs": {"x": "double.y"}, "on_error": "skip"},
    "mean": {"reduce": "mean", "inputs": {"y": ["double.y", "plus.y"]}, "require": "best_effort"},
    "rows": {
        "map": {"over": "input.x"},
        "steps": {"each": {"model": "plus@1", "inputs": {"x": "row.x"}, "on_error": "skip"}},
        "outputs": {"y": "each.y"},
    },
}
OUTPUTS = {"mean": "mean.y", "rows": "rows.y"}


def write_model(root: Path, name: str, factor: int, term: int) -> None:
    folder = root / "models" / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL.replace("FACTOR", str(factor)).replace("TERM", str(term)))
    spec = {
        "name": name, "version": 1, "backend": "python", "inputs": [TENSOR], "outputs": [{**TENSOR, "name": "y"}],
        "batching": {"max_batch_size": 64},
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))


def fleet_yaml() -> dict[str, Any]:
    shared = {"inputs": [TENSOR], "version": 1, "fused": True, "device": {"kind": "cpu", "compute": 10}}
    patient = {"slow": {**STEPS["double"], "timeout_ms": 400, "retries": 2}}
    return {
        "deployments": [
            {"model": name, "version": 1, "workers": {"min": 0, "max": 0}, "allow_code": True}
            for name in ("double", "plus")
        ],
        "pipelines": [
            {"name": "sums", "steps": STEPS, "outputs": OUTPUTS, **shared},
            {"name": "patient", "steps": patient, "outputs": {"y": "slow.y"}, **shared},
        ],
    }


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[AppliedFleet]:
    write_model(root, "double", 2, 0)
    write_model(root, "plus", 1, 10)
    (root / "fleet.yaml").write_text(yaml.safe_dump(fleet_yaml()))
    async with applied_fleet(root, {"HEADRACE_WORKER__RETRY_DELAYS_SECONDS": "[0.2, 0.2, 0.2]"}) as fleet:
        await apply(fleet.control.registry, root / "fleet.yaml")
        await await_ready(fleet.control, ["sums@1", "patient@1"], 60)
        yield fleet


async def submit(fleet: AppliedFleet, pipeline: str, *values: float, ttl: float = 30.0) -> Response:
    inputs = {"x": np.array([values], np.float32).T}
    return await fleet.client.infer(pipeline, inputs, ttl_seconds=ttl, raise_on_error=False)


def shown(response: Response) -> tuple[list[float], list[float]]:
    assert response.status is Status.OK, response
    mean, rows = (response[name].to_numpy().ravel().tolist() for name in ("mean", "rows"))
    return mean, rows


async def test_jobs_of_a_fused_pipeline_run_in_one_worker(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        leases = {lease.deployment: lease for lease in await fleet.leases()}
        assert {name: lease.models for name, lease in leases.items()} == {
            "patient@1": ("double@1",),
            "sums@1": ("double@1", "plus@1"),
        }
        assert len(fleet.engines()) == 2
        assert shown(await submit(fleet, "sums", 1, 2)) == ([7, 9], [11, 12])
        await rows_of_different_jobs_share_batches(fleet)
        await failing_steps_are_treated_as_the_plan_says(fleet)
        await time_limits_and_retries_hold(fleet)
        await jobs_survive_the_engine(fleet)


async def rows_of_different_jobs_share_batches(fleet: AppliedFleet) -> None:
    jobs = await asyncio.gather(*(submit(fleet, "sums@1", value) for value in range(200)))
    assert [shown(job) for job in jobs] == [([2 * v + 5], [v + 10]) for v in range(200)]
    assert max(job.receipt.batch_rows for job in jobs) > 1
    assert len({job.id for job in jobs}) == 200


async def failing_steps_are_treated_as_the_plan_says(fleet: AppliedFleet) -> None:
    good, bad, none = await asyncio.gather(
        submit(fleet, "sums", 5), submit(fleet, "sums", -0.5, -1), submit(fleet, "sums", 0)
    )
    assert shown(good) == ([15], [15])
    assert bad.status is Status.POISON  # nothing is left for the mean
    assert bad.error is not None
    assert "double: the model failed" in bad.error.message
    assert shown(none) == ([5], [10])
    skipped = await submit(fleet, "sums", -0.5)  # double makes -1 of it, at which plus raises
    assert shown(skipped) == ([-1], [9.5])


async def time_limits_and_retries_hold(fleet: AppliedFleet) -> None:
    again = await submit(fleet, "patient", -4)
    assert (again.status, again.receipt.attempt) == (Status.OK, 1)  # out of memory alone: at once, then it fits
    jobs = []
    async with asyncio.TaskGroup() as group:
        for value in (-3, 1, 2):  # the first runs for 3 seconds, the second is next
            jobs.append(group.create_task(submit(fleet, "patient", value), name=f"job {value}"))
            await asyncio.sleep(0.2)
    found = [job.result() for job in jobs]
    assert [job.status for job in found] == [Status.OK] * 3  # what runs is not interrupted
    assert found[2].receipt.attempt == 2  # the time of its first attempt ended in the queue


async def jobs_survive_the_engine(fleet: AppliedFleet) -> None:
    jobs = asyncio.gather(*(submit(fleet, "sums", value, ttl=60) for value in range(100)))
    await asyncio.sleep(0.01)
    for engine in fleet.engines():
        os.kill(engine.pid, signal.SIGKILL)
    assert [shown(job) for job in await jobs] == [([2 * v + 5], [v + 10]) for v in range(100)]
    killer, neighbour = await asyncio.gather(submit(fleet, "sums", -2, ttl=60), submit(fleet, "sums", 3, ttl=60))
    assert killer.status is Status.POISON
    assert shown(neighbour) == ([11], [13])
    for lease in await fleet.leases():
        if lease.deployment == "sums@1":
            os.kill(int(lease.bound["ingest_pid"]), signal.SIGKILL)
    assert shown(await submit(fleet, "sums", 4, ttl=60)) == ([13], [14])
