"""The journal of launches on a real server: who is counted, when, and who never is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contracts import keys
from contracts.adapters.journal import Journal, Past, Tries
from contracts.clock import SystemClock
from tests.helpers import wait_until
from tests.integration.redis.kit import Pool

TOPIC = "headrace.requests.m.1"


@pytest.fixture
async def journals(pool: Pool) -> AsyncIterator[list[Journal]]:
    """Of three workers; none of them holds a lease that the pool knows, as if they were gone."""
    made = [Journal(pool.redis, "default", f"gone-{number}", SystemClock()) for number in range(3)]
    for journal in made:
        await journal.open()
    yield made
    for journal in made:
        await journal.close()


async def flown(pool: Pool, count: int) -> None:
    """Wait until so many fields are there: these writes are not waited for."""

    async def arrived() -> bool:
        return bool(await pool.redis.command("HLEN", keys.flights(pool.redis.prefix, "default")) == count)

    await wait_until(arrived)


async def past(journal: Journal, start: int = 0, partition: int = 0) -> Past:
    return (await journal.claim(TOPIC, {partition: (start, True)}))[partition]


async def test_what_a_dead_worker_held_is_suspect_for_the_next_owner_and_counted_once(
    pool: Pool, journals: list[Journal]
) -> None:
    first, second, third = journals
    first.launched(0, [(f"{TOPIC}/0", 4, 5), (f"{TOPIC}/0", 7, 7), (f"{TOPIC}/1", 9, 9)])
    first.launched(1, [(f"{TOPIC}/0", 8, 8)])
    await flown(pool, 2)
    assert await past(second, 6) == Past(1, {7: Tries(1, 0), 8: Tries(1, 0)})
    assert await past(third, 6) == Past(2, {7: Tries(1, 0), 8: Tries(1, 0)})
    assert (await past(third, 0, 1)).suspects == {9: Tries(1, 0)}
    await flown(pool, 0)


async def test_a_slot_that_is_used_again_says_only_what_it_holds_now(pool: Pool, journals: list[Journal]) -> None:
    first, second, _ = journals
    first.launched(0, [(f"{TOPIC}/0", 1, 1)])
    first.launched(0, [(f"{TOPIC}/0", 2, 2)])
    first.launched(1, [])
    await flown(pool, 2)
    assert (await past(second)).suspects == {2: Tries(1, 0)}


async def test_a_worker_that_ends_in_peace_leaves_no_suspects(pool: Pool, journals: list[Journal]) -> None:
    first, second, _ = journals
    first.launched(0, [(f"{TOPIC}/0", 1, 1)])
    await flown(pool, 1)
    await first.forget()
    assert (await past(second)).suspects == {}


async def test_what_a_living_worker_holds_is_not_counted(pool: Pool, journals: list[Journal]) -> None:
    await pool.node("n1")
    lease = await pool.active("n1")
    living = Journal(pool.redis, "default", lease.lease, SystemClock())
    await living.open()
    living.launched(0, [(f"{TOPIC}/0", 1, 1)])
    await flown(pool, 1)
    assert (await past(journals[0])).suspects == {}
    await pool.leases.release(lease.lease, lease.token, "its ingest was ended")
    assert (await past(journals[1])).suspects == {1: Tries(1, 0)}
    await living.close()


async def test_a_suspect_is_counted_before_it_runs_and_forgotten_after(pool: Pool, journals: list[Journal]) -> None:
    first, second, third = journals
    first.lost([(TOPIC, 0, 3), (TOPIC, 0, 4)], is_alone=False)

    async def seen() -> bool:
        return len((await past(second)).suspects) == 2

    await wait_until(seen)
    await second.suspect((TOPIC, 0, 3))
    await second.suspect((TOPIC, 0, 3))
    await second.suspect((TOPIC, 0, 4))
    assert (await past(third)).suspects == {3: Tries(3, 2), 4: Tries(2, 1)}
    second.settled((TOPIC, 0, 3))
    second.refund((TOPIC, 0, 4))

    async def forgotten() -> bool:
        return (await past(third)).suspects == {4: Tries(1, 0)}

    await wait_until(forgotten)


async def test_claims_count_until_somebody_gets_on(pool: Pool, journals: list[Journal]) -> None:
    first, second, third = journals
    assert [(await past(journal)).claims for journal in journals] == [1, 2, 3]
    first.progressed(TOPIC, 0)

    async def cleared() -> bool:
        return (await past(third)).claims < 3

    await wait_until(cleared)
    assert (await second.claim(TOPIC, {5: (0, False)}))[5].claims == 0  # nothing waits there that could do harm


async def test_a_lost_connection_is_noticed_and_opened_again(pool: Pool, journals: list[Journal]) -> None:
    first, second, _ = journals
    first.launched(2, [])
    await flown(pool, 1)
    clients = str(await pool.redis.command("CLIENT", "LIST")).splitlines()
    (one,) = (line for line in clients if " cmd=hset " in line)
    await pool.redis.command("CLIENT", "KILL", "ID", one.split()[0].removeprefix("id="))
    assert first._channel is not None
    await wait_until(lambda: first._channel is not None and first._channel.is_lost)
    first.launched(0, [(f"{TOPIC}/0", 1, 1)])  # dropped, and nothing raised
    await first.keep()
    first.launched(1, [(f"{TOPIC}/0", 2, 2)])
    await flown(pool, 2)
    assert (await past(second)).suspects == {2: Tries(1, 0)}
