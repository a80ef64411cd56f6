"""However a step behaves, its job ends as documented and in time, step by step in the fleet and fused alike."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from contracts.messages import Response, Status
from tests.e2e.pipeline_kit import HANG, RAISE, REFUSE, PipelineFleet, fused, pipeline_fleet, row
from tests.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TTL = 2.0
BUSY_SECONDS = 5.0  # that a busy machine may add; who does not look at the time waits for the test to end
HEAD = """
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
topic: {partitions: 2}
"""
PICKY = f"""
name: picky
{HEAD}
steps:
  one: {{model: relay@1, inputs: {{row: input.row}}}}
  two: {{model: relay@2, inputs: {{row: one.row}}, on_error: skip}}
  three: {{model: relay@3, inputs: {{row: one.row}}, when: {{tensor: one.row, op: max_at_least, value: 1000000}}}}
  both: {{reduce: concat, inputs: {{row: [two.row, three.row]}}}}
outputs: {{row: one.row, both: both.row, third: three.row}}
"""
CROWD = f"""
name: crowd
{HEAD}
steps:
  each:
    map: {{over: input.row}}
    steps:
      one: {{model: relay@1, inputs: {{row: row.row}}}}
    outputs: {{row: one.row}}
outputs: {{row: each.row}}
"""
NEVER = f"""
name: never
{HEAD}
steps:
  quick: {{model: relay@1, inputs: {{row: input.row}}}}
  mute: {{model: relay@2, inputs: {{row: {{const: [[{HANG}, 0, 0, 0]], datatype: FP32}}}}}}
  mean: {{reduce: mean, inputs: {{row: [quick.row, mute.row]}}}}
outputs: {{row: mean.row}}
"""
PATIENT = (
    NEVER.replace("name: never", "name: patient")
    .replace("mute: {model: relay@2", "mute: {model: relay@3")  # or one would wait for the other's nap
    .replace("mute.row]}", "mute.row]}, require: best_effort")
)
LINE = f"""
name: line
{HEAD}
steps:
  one: {{model: relay@1, inputs: {{row: input.row}}}}
  mute: {{model: relay@2, inputs: {{row: one.row}}}}
  three: {{model: relay@3, inputs: {{row: mute.row}}}}
outputs: {{row: three.row}}
"""


async def ask(fleet: PipelineFleet, name: str, rows: np.ndarray, ttl: float = 20.0) -> Response:
    """A job's outcome, which is there by its deadline, or the client's own word 2 s later."""
    began = time.monotonic()
    response = await fleet.client.infer(name, {"row": rows}, ttl_seconds=ttl, raise_on_error=False)
    assert time.monotonic() - began < ttl + 2.0 + BUSY_SECONDS
    return response


async def test_every_job_ends_as_documented_by_its_deadline(tmp_path: Path) -> None:
    async with pipeline_fleet(tmp_path) as fleet:
        chained = (PICKY, CROWD, NEVER, LINE, PATIENT)
        await fleet.apply(*chained, *map(fused, chained[:4]))
        await asyncio.gather(
            a_step_never_answers(fleet, "never"),
            a_step_never_answers(fleet, "never-fused"),
            a_step_may_be_missing(fleet),
            a_step_of_a_chain_never_answers(fleet, "line"),
            a_step_of_a_chain_never_answers(fleet, "line-fused"),
        )
        for name in ("crowd", "crowd-fused"):  # first, for its workers are not those that still hang
            await a_map_has_any_width(fleet, name)
        for name in ("picky", "picky-fused"):
            await a_step_fails(fleet, name)
        for name in ("line", "line-fused"):  # no other final came
            assert len(await fleet.answers(f"{name}-never")) == 1
        await wait_until(lambda: fleet.holds_nothing({"line": 2, "line-fused": 2}), "offsets are held back", timeout=30)


async def a_step_fails(fleet: PipelineFleet, name: str) -> None:
    """A condition is never taken, and one step fails, or the other."""
    fine = await ask(fleet, name, row(1))
    assert (fine.status, fine.parameters) == (Status.OK, {"skipped": "third"})
    assert [fine[tensor].to_numpy()[:, 1].tolist() for tensor in ("row", "both")] == [[2], [3]]
    for wish, status, words in (
        (RAISE, Status.POISON, "step one: the model failed on this request alone"),
        (REFUSE, Status.INVALID, "step one: asked to refuse"),
    ):
        spared = await ask(fleet, name, row(1, wish, at=1))
        assert (spared.status, spared.parameters) == (Status.OK, {"skipped": "both,third"})
        ended = await ask(fleet, name, row(1, wish))
        assert ended.status is status
        assert ended.error is not None
        assert words in ended.error.message


async def a_map_has_any_width(fleet: PipelineFleet, name: str) -> None:
    """None, as many as are allowed, and one more."""
    for count in (0, 10_000):
        rows = np.zeros((count, 4), np.float32)
        rows[:, 1] = np.arange(count)
        answer = await ask(fleet, name, rows)
        assert answer.status is Status.OK, answer.error
        assert np.array_equal(answer["row"].to_numpy()[:, 1], rows[:, 1] + 1)
    refused = await ask(fleet, name, np.zeros((10_001, 4), np.float32))
    assert refused.status is Status.INVALID
    assert refused.error is not None
    assert "max_rows" in refused.error.message


async def a_step_never_answers(fleet: PipelineFleet, name: str) -> None:
    """At the deadline, the join goes on without it, which is the job's error."""
    never = await ask(fleet, name, row(1), TTL)
    assert never.status is Status.DEADLINE_EXCEEDED
    assert never.error is not None
    assert "mute" in never.error.message


async def a_step_may_be_missing(fleet: PipelineFleet) -> None:
    """The same, where the join may do without it."""
    patient = await ask(fleet, "patient", row(1), TTL)
    assert (patient.status, patient.parameters) == (Status.OK, {"missing": "mute"})
    assert patient["row"].to_numpy()[0, 1] == 2


async def a_step_of_a_chain_never_answers(fleet: PipelineFleet, name: str) -> None:
    """There is no join to say so: the client does, and the fleet when the engine has come back, or been killed."""
    inputs, job = {"row": row(1, HANG, at=1)}, f"{name}-never"
    never = await fleet.client.infer(name, inputs, request_id=job, ttl_seconds=TTL, raise_on_error=False)
    assert never.status is Status.DEADLINE_EXCEEDED
    assert never.error is not None
    assert "answered by the client itself" in never.error.message

    async def is_answered() -> bool:
        return bool(await fleet.answers(job))

    await wait_until(is_answered, f"{job} has no final in the log", timeout=20)
    (final,) = await fleet.answers(job)
    assert final.status is Status.DEADLINE_EXCEEDED
