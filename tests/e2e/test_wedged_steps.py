"""A step that wedges its engine: the watchdog ends the engine, and the job ends as documented, once and in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts.messages import Status
from tests.e2e.pipeline_kit import CHAIN, WEDGE, PipelineFleet, fused, pipeline_fleet, row
from tests.e2e.test_joins import QUICK_LEASES
from tests.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WATCHDOG = {"HEADRACE_WORKER__WATCHDOG_SECONDS": "1", "HEADRACE_WORKER__WATCHDOG_UNMEASURED_SECONDS": "1"}
LONG, SHORT = 40.0, 3.0
"""Time for the three kills after which a request is put aside, and for one, if for that."""
SPARED = """
name: spared
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  quick: {model: relay@1, inputs: {row: input.row}}
  mute: {model: relay@3, inputs: {row: quick.row}}
  mean: {reduce: mean, inputs: {row: [quick.row, mute.row]}, require: best_effort}
outputs: {row: mean.row}
topic: {partitions: 4}
"""
NAMES = ("chain", "chain-fused", "spared", "spared-fused")


async def test_a_job_whose_step_wedges_its_engine_ends_once_and_in_time(tmp_path: Path) -> None:
    async with pipeline_fleet(tmp_path, env=QUICK_LEASES | WATCHDOG) as fleet:
        await fleet.apply(CHAIN, SPARED, fused(CHAIN), fused(SPARED))
        for ttl in (LONG, SHORT):
            # Their engines are there by then.
            await asyncio.gather(*(fleet.client.infer(name, {"row": row(1)}) for name in NAMES))
            await asyncio.gather(*(a_job_ends(fleet, name, ttl) for name in NAMES), others_are_served(fleet, "relay@2"))
        for name in NAMES:
            for ttl in (LONG, SHORT):
                await it_has_one_final(fleet, name, ttl)
        await wait_until(lambda: fleet.holds_nothing(dict.fromkeys(NAMES, 4)), "offsets are held back", timeout=30)


async def a_job_ends(fleet: PipelineFleet, name: str, ttl: float) -> None:
    """As poison if it has the time, else at its deadline; a join does without the branch in both cases."""
    inputs = {"row": row(1, WEDGE, at=1)}
    answer = await fleet.client.infer(name, inputs, request_id=job(name, ttl), ttl_seconds=ttl, raise_on_error=False)
    if name.startswith("spared"):
        assert (answer.status, answer.parameters) == (Status.OK, {"missing": "mute"})
        assert answer["row"].to_numpy()[0, 1] == 2
    else:
        assert answer.status is (Status.POISON if ttl == LONG else Status.DEADLINE_EXCEEDED)
        assert answer.error is not None
        assert "step two" in answer.error.message


def job(name: str, ttl: float) -> str:
    return f"{name}-{ttl:.0f}"


async def others_are_served(fleet: PipelineFleet, model: str) -> None:
    answers = await asyncio.gather(*(fleet.client.infer(model, {"row": row(n)}, ttl_seconds=60) for n in range(20)))
    assert [answer["row"].to_numpy()[0, 1] for answer in answers] == [n + 1 for n in range(20)]


async def it_has_one_final(fleet: PipelineFleet, name: str, ttl: float) -> None:
    """And one dead letter if a step of it was put aside."""
    (final,) = await fleet.answers(job(name, ttl))
    assert final.final
    assert len(await fleet.records("headrace.dead.", job(name, ttl))) == (1 if ttl == LONG else 0)
