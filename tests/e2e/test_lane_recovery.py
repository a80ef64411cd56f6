"""Lanes beside the straight way: shared by workers, through retries and dead letters, and from blocking code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from benchmarks.harness import control, wait_for_workers
from contracts import topics
from contracts.adapters.kafka import Partition, Record
from contracts.dead_letters import DeadLetter, parse_dead_letter
from contracts.messages import Status
from contracts.names import Priority
from producer.sync import SyncInferenceClient
from tests.e2e.conftest import headrace_program
from tests.e2e.fleet_kit import client_settings
from tests.e2e.hostile_kit import GOOD, HOSTILE, PARTITIONS, RAISE, REQUESTS, SHORT, Fleet, body, hostile_fleet, row
from tests.helpers import finished, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

SETTINGS = {"HEADRACE_WORKER__RETRY_DELAYS_SECONDS": "[0.3, 0.4, 0.5]"}
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
PLACES = {priority: topics.lane(REQUESTS, priority) for priority in PRIORITIES}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with hostile_fleet(tmp_path_factory.mktemp("lanes"), SETTINGS, 2, lanes=True) as running:
        await wait_until(lambda: all_are_shared(running), "two workers do not share the lanes")
        yield running


async def owners(fleet: Fleet) -> list[dict[int, str]]:
    """Who drains each partition, for the request topic and its lanes."""
    async with control(fleet.stack) as (_, leases):
        known = (await leases.state()).topics
    own = [known[place].own if place in known else {} for place in PLACES.values()]
    return [{partition: lease for partition, (lease, _) in one.items()} for one in own]


async def all_are_shared(fleet: Fleet) -> bool:
    """Whether two workers have half of the partitions each, and the same of every lane."""
    high, normal, low = await owners(fleet)
    return high == normal == low and sorted(map(list(normal.values()).count, set(normal.values()))) == [2, 2]


def parse(letter: Record) -> DeadLetter:
    return parse_dead_letter(letter.offset, letter.timestamp, letter.headers, letter.value)


async def written(fleet: Fleet) -> dict[str, int]:
    """Records that were ever written, by priority."""
    partitions = [Partition(place, number) for place in PLACES.values() for number in range(PARTITIONS)]
    bounds = await fleet.reader.bounds(partitions)
    return {
        priority: sum(end for partition, (_, end) in bounds.items() if partition.topic == place)
        for priority, place in PLACES.items()
    }


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_retry_goes_back_to_its_lane(fleet: Fleet, priority: Priority) -> None:
    before, value = await written(fleet), 100.0 + PRIORITIES.index(priority)
    name = await fleet.publish(body(SHORT, value), {"priority": priority.encode()}, 1, topic=PLACES[priority])
    response = await fleet.response_to(name)
    assert (response.status, response.receipt.attempt) == (Status.OK, 2)
    assert response["sum"].to_numpy().item() == value
    assert await written(fleet) == before | {priority: before[priority] + 2}


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_letter_that_is_sent_again_goes_back_to_its_lane(fleet: Fleet, priority: Priority) -> None:
    before = await written(fleet)
    name = await fleet.publish(body(RAISE), {"priority": priority.encode()}, 2, topic=PLACES[priority])
    assert (await fleet.response_to(name)).status is Status.POISON
    letter = parse(await fleet.letter_of(name))
    assert letter.source.startswith(f"{PLACES[priority]}/2/")
    known = fleet.stack.settings()
    address = {"HEADRACE_KAFKA__BOOTSTRAP": known.kafka.bootstrap, "HEADRACE_REDIS__URL": fleet.stack.redis_url}
    command = (headrace_program(), "dead", "replay", HOSTILE.model, name)
    status, _, errors = await finished(*command, env={**os.environ, **address})
    assert status == 0, errors
    await wait_until(lambda: len(fleet.letters(name)) == 2, "what was sent again was not put aside")
    await wait_until(lambda: len(fleet.responses[name]) == 2, "what was sent again was not answered")
    again = parse(fleet.letters(name)[1])
    assert again.source.startswith(f"{PLACES[priority]}/2/")
    assert await written(fleet) == before | {priority: before[priority] + 2}


async def test_blocking_code_names_a_priority_with_whatever_it_sends(fleet: Fleet) -> None:
    before = await written(fleet)

    def send() -> list[float]:
        with SyncInferenceClient(client_settings(fleet.stack)) as client:
            found = [client.infer("hostile", {"row": row(GOOD, 1)}, priority="high")]
            found.append(client.submit("hostile", {"row": row(GOOD, 2)}, priority="low").result())
            found += client.map("hostile", [{"row": row(GOOD, n)} for n in (3, 4)], ordered=True, priority="high")
            client.publish("hostile", {"row": row(GOOD, 5)}, priority="low")
            return [answer["sum"].to_numpy().item() for answer in found]

    assert await asyncio.to_thread(send) == [1, 2, 3, 4]
    assert await written(fleet) == {"high": before["high"] + 3, "normal": before["normal"], "low": before["low"] + 2}


async def test_when_one_of_two_workers_dies_the_other_has_all_lanes_and_nothing_is_lost(fleet: Fleet) -> None:
    values = range(300)
    handles = [
        await fleet.client.submit("hostile@1", {"row": row(GOOD, n)}, priority=PRIORITIES[n % 3], ttl_seconds=60)
        for n in values
    ]
    _, normal, _ = await owners(fleet)
    dead = normal[0]
    fleet.stack.kill_worker(dead)
    answers = await asyncio.gather(*(handle.result() for handle in handles))
    assert [answer["sum"].to_numpy().item() for answer in answers] == list(values)

    async def others_have_them() -> bool:
        return await all_are_shared(fleet) and all(dead not in one.values() for one in await owners(fleet))

    await wait_until(others_have_them, "the lanes of a dead worker are nobody's")
    async with control(fleet.stack) as (_, leases):
        await wait_for_workers(leases, HOSTILE, 2)
