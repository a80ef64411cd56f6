"""A fleet under load, disturbed: every request is answered exactly once and no caller notices.

The short form of `python -m tests.chaos`: each fault once, on both brokers; its figures are printed with -s.
"""

from __future__ import annotations

import pytest

from benchmarks.harness import print_table, running_stack
from deploy.embedded.stack import EmbeddedStack
from tests.chaos.__main__ import run_hostile, run_scenario, three_brokers
from tests.chaos.scenarios import Figures
from tests.servers import FENCED_SOONER, KAFKAS, KafkaName, ServerPool

IN_FLIGHT = 128


def judge(figures: Figures) -> None:
    """Nothing lost, doubled or exchanged, and no error seen by a caller."""
    assert [figures[name] for name in ("lost", "doubled", "mixed", "errors")] == [0, 0, 0, 0], figures


async def disturb(stack: EmbeddedStack, *scenarios: str) -> dict[str, Figures]:
    rows = {name: await run_scenario(name, stack, repeats=1, in_flight=IN_FLIGHT) for name in scenarios}
    for row in rows.values():
        print_table([row])
        judge(row)
    return rows


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kafka", KAFKAS)
async def test_scaling_and_the_death_of_any_process_go_unnoticed(kafka: KafkaName, servers: ServerPool) -> None:
    servers.kafka(kafka)  # skips, or fails in continuous integration, where there is none
    async with running_stack("embedded" if kafka == "embedded" else "home") as stack:
        rows = await disturb(stack, "scale", "kill-worker", "kill-engine", "kill-agent", "kill-scheduler")
    assert int(str(rows["scale"]["unmoved_stall_ms"])) <= 500 * SLOWNESS


@pytest.mark.timeout(180)
async def test_a_broker_of_three_dies_unnoticed(servers: ServerPool) -> None:
    servers.kafka("apache")
    async with three_brokers(FENCED_SOONER) as (stack, kafka):
        judge(await run_scenario("kill-broker", stack, repeats=1, in_flight=IN_FLIGHT, kafka=kafka))


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_rows_that_raise_are_put_aside_and_nobody_else_suffers() -> None:
    row = await run_hostile("poison", 1, IN_FLIGHT)
    print_table([row])
    judge(row)
    assert row["dead_letters"] == row["poison"] == 100
    assert float(str(row["extra_forwards_each"])) <= 10


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_rows_that_kill_or_wedge_the_engine_are_put_aside_and_nobody_else_suffers() -> None:
    row = await run_hostile("crash-poison", 1, IN_FLIGHT, env={"HEADRACE_WORKER__WATCHDOG_SECONDS": "1"})
    print_table([row])
    judge(row)
    assert row["dead_letters"] == row["poison"] == 4
    assert int(str(row["attempts_max"])) <= 3


SLOWNESS = 3  # the bound of 500 ms is for a quiet machine; here the suite and the fleet share two cores
