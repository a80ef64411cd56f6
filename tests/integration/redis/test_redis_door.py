import asyncio
import time

import pytest

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor, script, script_names
from contracts.errors import ConfigurationError, TransportError
from deploy.embedded.processes import Server


@pytest.mark.parametrize("name", script_names())
def test_each_script_says_what_it_touches_and_answers(name: str) -> None:
    source = script(name).source
    for word in ("-- uses: ", "-- KEYS ", "-- ARGV ", "-- reply ", "-- keys "):
        assert word in source, word


async def test_a_server_that_forgot_the_scripts_gets_them_again(redis: RedisDoor) -> None:
    leases = Leases(redis)
    assert await leases.reap() == []
    await redis.command("SCRIPT FLUSH")
    assert await leases.reap() == []


async def test_a_server_that_does_not_answer_is_a_transport_error_within_the_timeout(own_redis: Server) -> None:
    async with await RedisDoor.open(own_redis.address, timeout_seconds=0.2) as door:
        await door.command("CLIENT", "PAUSE", 1500)
        started = time.monotonic()
        with pytest.raises(TransportError):
            await Leases(door).reap()
        assert time.monotonic() - started < 1.0


async def test_nobody_at_the_address_is_a_transport_error() -> None:
    with pytest.raises(TransportError, match="Redis failed"):
        await RedisDoor.open("redis://127.0.0.1:1/0")


@pytest.mark.parametrize("url", ["kafka://127.0.0.1:1/0", "redis://user:se/cret@127.0.0.1/0"])
async def test_an_unusable_url_is_refused_without_quoting_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="write redis://") as caught:
        await RedisDoor.open(url)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_killed_and_restarted_server_is_found_again(own_redis: Server) -> None:
    async with await RedisDoor.open(own_redis.address, prefix="t") as door:
        leases = Leases(door)
        grant = await leases.acquire_leader("a", 60_000)
        assert grant is not None
        own_redis.kill()
        with pytest.raises(TransportError):
            await leases.reap()
        own_redis.start()
        assert await leases.acquire_leader("b", 60_000) is None


async def test_a_follower_that_is_cancelled_leaves_the_door_usable(redis: RedisDoor) -> None:
    leases = Leases(redis)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await leases.events("$", 10_000)
    assert await leases.events("$", 1) == ("0-0", [])


async def test_calls_of_many_tasks_share_the_door(redis: RedisDoor) -> None:
    leases = Leases(redis)
    states = await asyncio.gather(*(leases.state() for _ in range(100)))
    assert len(states) == 100


async def test_closing_twice_is_harmless(redis: RedisDoor) -> None:
    await redis.close()
    await redis.close()
