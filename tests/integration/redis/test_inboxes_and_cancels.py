import asyncio

from contracts.adapters.cancels import Cancel, Cancels
from contracts.adapters.inboxes import Inboxes
from contracts.adapters.redis import RedisDoor

TTL_MS = 60_000


async def test_each_client_gets_a_partition_of_its_own_until_none_is_left(redis: RedisDoor) -> None:
    inboxes = Inboxes(redis)
    leases = await asyncio.gather(*(inboxes.acquire("svc", 8, TTL_MS) for _ in range(9)))
    held = [lease for lease in leases if lease is not None]
    assert sorted(lease.partition for lease in held) == list(range(8))
    assert len({lease.token for lease in held}) == 8
    assert all(len(lease.token) == 16 for lease in held)
    assert (await inboxes.acquire("other", 1, TTL_MS)) is not None
    assert await inboxes.release(held[0])
    again = await inboxes.acquire("svc", 8, TTL_MS)
    assert again is not None
    assert again.partition == held[0].partition


async def test_a_lapsed_inbox_is_taken_again_unless_somebody_else_has_it(redis: RedisDoor) -> None:
    inboxes = Inboxes(redis)
    lease = await inboxes.acquire("svc", 1, TTL_MS)
    assert lease is not None
    assert await inboxes.renew(lease, TTL_MS)
    key = f"{redis.prefix}:inbox:{{svc}}:0"
    await redis.command("DEL", key)
    assert await inboxes.renew(lease, TTL_MS)
    await redis.command("DEL", key)
    other = await inboxes.acquire("svc", 1, TTL_MS)
    assert other is not None
    assert not await inboxes.renew(lease, TTL_MS)
    assert not await inboxes.release(lease)
    assert await inboxes.release(other)


async def test_an_inbox_that_nobody_renews_lapses(redis: RedisDoor) -> None:
    inboxes = Inboxes(redis)
    assert await inboxes.acquire("svc", 1, 1) is not None
    async with asyncio.timeout(5):
        while await inboxes.acquire("svc", 1, TTL_MS) is None:
            await asyncio.sleep(0)


async def test_a_worker_learns_of_cancels_before_and_after_it_came_up(redis: RedisDoor) -> None:
    cancels = Cancels(redis)
    assert await cancels.recent(TTL_MS) == ("0-0", [])
    await cancels.cancel("early", TTL_MS)
    await cancels.cancel("expired", 1)
    async with asyncio.timeout(5):
        while len((await cancels.recent(TTL_MS))[1]) > 1:
            await asyncio.sleep(0)
    last, found = await cancels.recent(TTL_MS)
    assert [cancel.request_id for cancel in found] == ["early"]
    assert found[0].expires_unix_ms > await redis.server_unix_ms()
    assert await cancels.follow(last, 0) == (last, [])
    async with asyncio.TaskGroup() as group:
        follower = group.create_task(cancels.follow(last, 10_000), name="follower")
        await asyncio.sleep(0)
        await cancels.cancel_all(["late", "later"], TTL_MS)
    after, found = follower.result()
    assert [cancel.request_id for cancel in found] == ["late", "later"]
    assert after > last


async def test_the_stream_of_cancels_lives_as_long_as_its_longest_entry(redis: RedisDoor) -> None:
    cancels = Cancels(redis)
    await cancels.cancel("long", TTL_MS)
    await cancels.cancel("short", 10)
    assert await redis.command("PTTL", f"{redis.prefix}:cancels") > 1000
    _, found = await cancels.follow("0-0", 0)
    assert isinstance(found[0], Cancel)
    assert [cancel.request_id for cancel in found] == ["long", "short"]
