"""Sequences through a whole stack: states kept in order, freed, and lost with those who held them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import pytest_asyncio

from benchmarks.harness import control, deploy, wait_for_workers
from contracts.errors import InvalidRequest, Overloaded, PoisonRequest, SequenceLost
from contracts.messages import Response
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, DeviceSpec, TopicSpec, WorkersSpec
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from producer.sequences import Sequence
from producer.settings import ClientSettings
from producer.sync import SyncInferenceClient
from tests.e2e.fleet_kit import client_settings
from tests.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

TOTALS = ModelVersion("totals", 1)
FOLDER = Path(__file__).resolve().parents[1] / "models" / "totals" / "1"
MOST = 64
RAISE, KILL = -1.0, -2.0


class Adding(NamedTuple):
    """The stack and a client on it."""

    client: InferenceClient
    settings: ClientSettings
    stack: EmbeddedStack

    def sequence(self) -> Sequence:
        return self.client.sequence("totals@1")


def value(number: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"value": np.array([[number]], np.float32)}


def total(response: Response) -> float:
    return float(response["total"].to_numpy().item())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def adding(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Adding]:
    deployment = DeploymentSpec(
        model=TOTALS.model,
        version=TOTALS.version,
        workers=WorkersSpec(min=2, max=2),
        device=DeviceSpec(kind="cpu", compute=25, memory_mib=64),
        topic=TopicSpec(partitions=4),
        allow_code=True,
    )
    environment = {"HEADRACE_WORKER__METRICS_PORT": "0"}
    async with EmbeddedStack(tmp_path_factory.mktemp("adding"), kafka="embedded", env=environment) as stack:
        async with control(stack) as (registry, leases):
            await deploy(registry, FOLDER, deployment)
            await wait_for_workers(leases, TOTALS, 2)
        settings = client_settings(stack)
        async with InferenceClient(settings) as client:
            yield Adding(client, settings, stack)


async def test_sequences_keep_their_states_side_by_side_and_share_batches(adding: Adding) -> None:
    async def add_up(number: int) -> list[int]:
        async with adding.sequence() as sequence:
            steps = [await sequence.infer(value(number)) for _ in range(6)]
            await sequence.infer(value(0), end=True)
        assert [total(step) for step in steps] == [number * count for count in range(1, 7)]
        assert {step.receipt.worker for step in steps} == {steps[0].receipt.worker}
        return [step.receipt.batch_rows for step in steps]

    rows = await asyncio.gather(*(add_up(number) for number in range(8)))
    assert max(max(found) for found in rows) > 1


async def test_steps_that_are_sent_at_once_run_in_their_order(adding: Adding) -> None:
    async with adding.sequence() as sequence:
        await sequence.infer(value(1))
        steps = await asyncio.gather(*(sequence.infer(value(number)) for number in range(2, 12)))
    assert [total(step) for step in steps] == [sum(range(1, last + 1)) for last in range(2, 12)]


async def test_what_ended_is_lost_and_a_start_begins_anew(adding: Adding) -> None:
    async with adding.sequence() as sequence:
        assert total(await sequence.infer(value(3))) == 3
        assert total(await sequence.infer(value(4), start=True)) == 4
        assert total(await sequence.infer(value(1), end=True)) == 5
        assert total(await sequence.infer(value(1))) == 1  # the first one after the end starts by itself


async def test_a_step_that_fails_leaves_its_state_and_its_neighbours_alone(adding: Adding) -> None:
    async with adding.sequence() as good, adding.sequence() as bad:
        await asyncio.gather(good.infer(value(1)), bad.infer(value(10)))
        outcomes = await asyncio.gather(good.infer(value(1)), bad.infer(value(RAISE)), return_exceptions=True)
        assert isinstance(outcomes[1], PoisonRequest)
        assert [total(await sequence.infer(value(1))) for sequence in (good, bad)] == [3, 11]


async def test_an_engine_that_dies_takes_the_states_with_it(adding: Adding) -> None:
    async with adding.sequence() as sequence:
        await sequence.infer(value(5))
        with pytest.raises(SequenceLost, match="start it again"):
            await sequence.infer(value(KILL), ttl_seconds=60)
        assert total(await sequence.infer(value(7), ttl_seconds=60)) == 7


async def test_a_worker_that_is_killed_takes_the_states_with_it(adding: Adding) -> None:
    async with adding.sequence() as sequence:
        await sequence.infer(value(5), ttl_seconds=60)
        for pid in ingest_pids(adding.stack):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SequenceLost):
            await sequence.infer(value(1), ttl_seconds=60)
        assert total(await sequence.infer(value(7), ttl_seconds=60)) == 7
    async with control(adding.stack) as (_, leases):  # partitions on their way would take other tests' states along
        await wait_for_workers(leases, TOTALS, 2)


def ingest_pids(stack: EmbeddedStack) -> list[int]:
    return [pid for pid in stack.worker_pids() if "workers.ingest" in Path(f"/proc/{pid}/cmdline").read_text()]


async def test_a_sequence_that_is_idle_is_forgotten(adding: Adding) -> None:
    async with adding.sequence() as sequence:
        await sequence.infer(value(5))

        async def is_lost() -> bool:
            await asyncio.sleep(2.0)  # longer than its idle time, which each look would begin again
            response = await sequence.infer(value(0), raise_on_error=False)
            return response.status == "SEQUENCE_LOST"

        await wait_until(is_lost, "an idle sequence was kept")


async def test_a_worker_keeps_as_many_as_it_may_and_leaving_makes_room(adding: Adding) -> None:
    first = [await adding.sequence().__aenter__() for _ in range(4 * MOST)]
    outcomes = await asyncio.gather(*(sequence.infer(value(1)) for sequence in first), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    taken = [outcome for outcome in outcomes if isinstance(outcome, Response)]
    assert len(taken) + len(refused) == len(first)
    assert MOST < len(taken) <= 2 * MOST  # those of the tests before may be there yet
    for sequence in first:
        sequence.give_up()

    async def ask_another() -> bool:
        async with adding.sequence() as another:
            return (await another.infer(value(1), raise_on_error=False)).status == "OK"

    async def has_room() -> bool:  # in both workers: so many sequences are spread over them
        await asyncio.sleep(0.7)  # or those of the last look would fill what was just freed
        return all(await asyncio.gather(*(ask_another() for _ in range(12))))

    await wait_until(has_room, "sequences that were given up are kept")


async def test_such_a_model_takes_steps_only(adding: Adding) -> None:
    with pytest.raises(InvalidRequest, match="steps of a sequence only"):
        await adding.client.infer("totals@1", value(1))


async def test_threads_have_sequences_too(adding: Adding) -> None:
    def add_up() -> list[float]:
        with SyncInferenceClient(adding.settings) as client, client.sequence("totals@1") as sequence:
            return [total(sequence.infer(value(2))) for _ in range(3)]

    assert await asyncio.to_thread(add_up) == [2, 4, 6]
