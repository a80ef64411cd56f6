"""Streams through a whole stack: parts in order, and what becomes of them when somebody fails, leaves or dawdles."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import pytest_asyncio

from benchmarks.harness import control, deploy, wait_for_workers
from contracts.errors import DeadlineExceeded, InvalidRequest, Overloaded, PoisonRequest, StreamBroken
from contracts.messages import Response, Status
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, DeviceSpec, TopicSpec, WorkersSpec
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from producer.settings import ClientSettings
from producer.sync import SyncInferenceClient
from tests.e2e.conftest import headrace_program
from tests.e2e.fleet_kit import client_settings
from tests.e2e.test_readme import commands, expect, programs
from tests.helpers import finished, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
COUNTER = ModelVersion("counter", 1)
NOTHING, RAISE, KILL_ONCE, KILL_AND_DIFFER, SLOW, BULKY, KILL, REFUSE = range(8)
SHOWN = (ModelVersion("speller", 1), ModelVersion("running-mean", 1))
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "streaming"
MODELS = Path(__file__).resolve().parents[1] / "models"


class Counting(NamedTuple):
    """The stack, a client on it, the folder in which the model leaves word, and where the stack is."""

    client: InferenceClient
    settings: ClientSettings
    folder: Path
    address: dict[str, str]


def plan(parts: int, trouble: int = NOTHING, at: int = 0, figure: int = 0) -> dict[str, Array]:
    return {"plan": np.array([[parts, trouble, at, figure]], np.int64)}


def number(part: Response) -> int:
    return int(part["number"].to_numpy().item())


def deployment(key: ModelVersion) -> DeploymentSpec:
    return DeploymentSpec(
        model=key.model,
        version=key.version,
        workers=WorkersSpec(min=1, max=1),
        device=DeviceSpec(kind="cpu", compute=25, memory_mib=64),
        topic=TopicSpec(partitions=2),
        allow_code=True,
    )


async def read_into(found: list[int], stream: AsyncIterator[Response]) -> None:
    async for part in stream:
        found.append(number(part))  # noqa: PERF401 - what came before an exception counts


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["embedded", "home"])
async def counting(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Counting]:
    if request.param == "home" and not os.environ.get("KAFKA_HOME"):
        pytest.skip("KAFKA_HOME names no Apache Kafka")
    home = tmp_path_factory.mktemp("counting")
    folder = home / "model"
    shutil.copytree(MODELS / "counter" / "1", folder)
    async with EmbeddedStack(home, kafka=request.param, env={"HEADRACE_WORKER__METRICS_PORT": "0"}) as stack:
        async with control(stack) as (registry, leases):
            for key, place in ((COUNTER, folder), *((key, EXAMPLES / "models" / key.model / "1") for key in SHOWN)):
                await deploy(registry, place, deployment(key))
            for key in (COUNTER, *SHOWN):
                await wait_for_workers(leases, key, 1)
        known = stack.settings()
        settings = client_settings(stack)
        async with InferenceClient(settings) as client:
            address = {"HEADRACE_KAFKA__BOOTSTRAP": known.kafka.bootstrap, "HEADRACE_REDIS__URL": stack.redis_url}
            yield Counting(client, settings, folder, address)


async def test_parts_come_once_and_in_order_and_the_last_one_has_the_receipt(counting: Counting) -> None:
    parts = [part async for part in counting.client.stream("counter@1", plan(5))]
    assert [number(part) for part in parts] == [0, 1, 2, 3, 4]
    assert [part.index for part in parts] == [0, 1, 2, 3, 4]
    assert [part.status for part in parts] == [Status.PARTIAL] * 4 + [Status.OK]
    assert [part.final for part in parts] == [False] * 4 + [True]
    assert parts[-1].receipt.computed_us > 0
    assert parts[-1].receipt.batch_rows == 1


async def test_streams_of_different_lengths_share_batches(counting: Counting) -> None:
    async def read(count: int) -> tuple[list[int], int]:
        parts = [part async for part in counting.client.stream("counter@1", plan(count), key="one partition")]
        return [number(part) for part in parts], parts[-1].receipt.batch_rows

    found = await asyncio.gather(*(read(count) for count in range(1, 17)))
    assert [numbers for numbers, _ in found] == [[*range(count)] for count in range(1, 17)]
    assert max(rows for _, rows in found) > 1


async def test_whoever_does_not_stream_gets_all_parts_as_one_response(counting: Counting) -> None:
    response = await counting.client.infer("counter@1", plan(4))
    assert response["number"].to_numpy().tolist() == [[0], [1], [2], [3]]
    assert response.final
    nothing = await counting.client.infer("counter@1", plan(0))
    assert nothing.outputs == ()


async def test_a_request_of_two_rows_is_refused(counting: Counting) -> None:
    both = {"plan": np.zeros((2, 4), np.int64)}
    with pytest.raises(
        InvalidRequest,
        match=r"2 rows; counter@1 takes 1 row in a request: make a request of each row \(headrace infer --per-row",
    ):
        await anext(counting.client.stream("counter@1", both))


async def test_a_stream_is_continued_by_the_run_after_the_engine_was_killed(counting: Counting) -> None:
    (counting.folder / f"killed-{KILL_ONCE}").unlink(missing_ok=True)
    parts = [part async for part in counting.client.stream("counter@1", plan(6, KILL_ONCE, at=3))]
    assert [number(part) for part in parts] == [0, 1, 2, 3, 4, 5]
    assert len({part.run for part in parts}) > 1


async def test_a_stream_that_comes_out_differently_after_a_failure_is_broken(counting: Counting) -> None:
    (counting.folder / f"killed-{KILL_AND_DIFFER}").unlink(missing_ok=True)
    found: list[int] = []
    with pytest.raises(StreamBroken, match="came out differently"):
        await read_into(found, counting.client.stream("counter@1", plan(6, KILL_AND_DIFFER, at=3)))
    assert found == [0, 1, 2]


async def test_a_stream_that_raises_or_kills_is_poison_and_its_neighbours_are_not(counting: Counting) -> None:
    async def read(inputs: dict[str, Array]) -> list[int]:
        stream = counting.client.stream("counter@1", inputs, key="one partition", ttl_seconds=60)
        return [number(part) async for part in stream]

    raising, killing, *good = await asyncio.gather(
        read(plan(5, RAISE, at=2)),
        read(plan(5, KILL, at=2)),
        *(read(plan(5)) for _ in range(4)),
        return_exceptions=True,
    )
    assert isinstance(raising, PoisonRequest)
    assert isinstance(killing, PoisonRequest)
    assert good == [[0, 1, 2, 3, 4]] * 4


async def test_a_stream_that_is_refused_after_parts_is_invalid_and_its_neighbours_are_whole(counting: Counting) -> None:
    found: list[int] = []

    async def read(inputs: dict[str, Array]) -> list[int]:
        return [number(part) async for part in counting.client.stream("counter@1", inputs, key="one partition")]

    refused = read_into(found, counting.client.stream("counter@1", plan(5, REFUSE, at=2), key="one partition"))
    outcome, *good = await asyncio.gather(refused, *(read(plan(5)) for _ in range(4)), return_exceptions=True)
    assert isinstance(outcome, InvalidRequest)
    assert str(outcome).endswith("no more than 2")
    assert found == [0, 1]
    assert good == [[0, 1, 2, 3, 4]] * 4


async def test_leaving_the_loop_stops_the_model_at_its_next_yield(counting: Counting) -> None:
    (counting.folder / "steps").unlink(missing_ok=True)
    async for part in counting.client.stream("counter@1", plan(10_000, SLOW, figure=10), ttl_seconds=120):
        if part.index == 3:
            break
    await wait_until((counting.folder / "steps").exists, "the model was not stopped")
    assert int((counting.folder / "steps").read_text()) < 1_000
    assert [number(part) async for part in counting.client.stream("counter@1", plan(2))] == [0, 1]


async def test_a_task_that_is_cancelled_stops_the_model_too(counting: Counting) -> None:
    (counting.folder / "steps").unlink(missing_ok=True)
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in counting.client.stream("counter@1", plan(10_000, SLOW, figure=10), ttl_seconds=120):
            begun.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(read())
        await begun.wait()
        task.cancel()
    await wait_until((counting.folder / "steps").exists, "the model was not stopped")


async def test_a_stream_ends_with_its_time_to_live(counting: Counting) -> None:
    found: list[int] = []
    with pytest.raises(DeadlineExceeded, match="before the stream did"):  # says the worker
        await read_into(found, counting.client.stream("counter@1", plan(10_000, SLOW, figure=20), ttl_seconds=0.5))
    assert found == [*range(len(found))]
    assert found


async def test_a_part_that_does_not_come_in_time_ends_the_stream(counting: Counting) -> None:
    found: list[int] = []
    with pytest.raises(DeadlineExceeded, match="no further part within"):
        await read_into(found, counting.client.stream("counter@1", plan(3, SLOW, figure=1_000), idle_seconds=0.3))
    assert found == []


async def test_a_reader_that_falls_behind_gets_what_was_kept_and_a_clear_error(counting: Counting) -> None:
    stream = counting.client.stream("counter@1", plan(200), buffer_parts=20)
    found = [number(await anext(stream))]
    before = counting.client.stats().late
    await wait_until(lambda: counting.client.stats().late > before, "the stream was not given up")
    with pytest.raises(Overloaded, match="20 parts of its stream were not read in time"):
        await read_into(found, stream)
    assert found == [*range(len(found))]
    assert len(found) >= 20


async def test_large_parts_come_whole(counting: Counting) -> None:
    size = 400_000
    stream = counting.client.stream("counter@1", plan(10, BULKY, figure=size), ttl_seconds=60)
    found = [(number(part), len(part["filler"].data)) async for part in stream]
    assert found == [(step, size + 4) for step in range(10)]


async def test_threads_stream_too(counting: Counting) -> None:
    def read() -> list[int]:
        with SyncInferenceClient(counting.settings) as client:
            for part in client.stream("counter@1", plan(10_000, SLOW, figure=10)):
                if part.index == 2:
                    break
            return [number(part) for part in client.stream("counter@1", plan(4))]

    assert await asyncio.to_thread(read) == [0, 1, 2, 3]


async def test_the_page_about_streaming_prints_what_it_shows(counting: Counting) -> None:
    environment = {**os.environ, **counting.address, "TERM": "dumb"}

    async def output(*command: str) -> str:
        _, printed, errors = await finished(*command, cwd=ROOT, env=environment)
        return printed + errors

    for program, shown in programs("docs/streaming.md"):
        expect(shown, await output(sys.executable, "-c", program))
    for command, shown in commands("docs/streaming.md"):
        expect(shown, await output(headrace_program(), *shlex.split(command)[1:]))
