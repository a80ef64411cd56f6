"""Records of idempotency keys, on every kind of Redis."""

from __future__ import annotations

import asyncio

import numpy as np

from contracts import keys
from contracts.adapters.idempotency import Claim, Idempotency, KeyedRequest
from contracts.adapters.redis import RedisDoor
from contracts.messages import Response, Status
from contracts.tensors import Tensor
from tests.helpers import wait_until

KEEP_MS = 60_000
OK = Response("a-1", Status.OK, "echo", 1, (Tensor.from_numpy("y", np.arange(256, dtype=np.uint8)),))
FAILED = Response("a-1", Status.INTERNAL, "echo", 1)


def store(redis: RedisDoor, holder: str, mark_ms: int = 30_000) -> Idempotency:
    return Idempotency(redis, "acme", holder=holder, mark_ms=mark_ms, keep_ms=KEEP_MS)


def asks(request_id: str, body: str = "b1") -> KeyedRequest:
    return KeyedRequest("order:1", body, request_id)


async def test_one_of_many_who_begin_at_once_carries_it_out(redis: RedisDoor) -> None:
    stores = [store(redis, f"h{number}") for number in range(8)]
    claims = await asyncio.gather(*(one.begin(asks(f"{n}")) for n, one in enumerate(stores)))
    assert sorted(claim.standing for claim in claims) == ["RUN", *["WAIT"] * 7]
    assert len({claim.request_id for claim in claims}) == 1
    assert all(29 < claim.lapses_seconds <= 30 for claim in claims if claim.standing == "WAIT")
    record = keys.idempotency(redis.prefix, "acme", "order:1")
    assert KEEP_MS - 5_000 < int(await redis.command("PTTL", record)) <= KEEP_MS


async def test_its_holder_may_begin_again_and_another_body_is_a_conflict(redis: RedisDoor) -> None:
    one, two = store(redis, "one"), store(redis, "two")
    assert await one.begin(asks("a-1")) == Claim("RUN", "a-1")
    assert await one.begin(asks("a-2")) == Claim("RUN", "a-1")  # its answer may have been lost
    for other in (one, two):
        assert await other.begin(asks("a-3", "b2")) == Claim("CONFLICT", "a-1")
    assert (await Idempotency(redis, "other", holder="x", mark_ms=1, keep_ms=1_000).begin(asks("z"))).request_id == "z"


async def test_who_comes_after_the_mark_lapsed_takes_the_same_request_over(redis: RedisDoor) -> None:
    one, two = store(redis, "one", mark_ms=150), store(redis, "two")
    await one.begin(asks("a-1"))
    assert (await two.begin(asks("b-1"))).standing == "WAIT"

    async def takes_over() -> bool:
        return await two.begin(asks("b-1"), "a-1") == Claim("RUN", "a-1")

    await wait_until(takes_over)
    assert not await one.renew(asks("a-1"))
    assert not await one.finish(asks("a-1"), FAILED, is_kept=False)  # not its failure any more
    assert await two.renew(asks("a-1"))
    assert await one.finish(asks("a-1"), OK, is_kept=True)  # but a result is a result
    assert not await two.finish(asks("a-1"), OK, is_kept=True)


async def test_a_result_answers_the_key_byte_for_byte(redis: RedisDoor) -> None:
    one = store(redis, "one")
    await one.begin(asks("a-1"))
    assert await one.finish(asks("a-1"), OK, is_kept=True)
    claim = await store(redis, "two").begin(asks("b-1"))
    assert claim == Claim("DONE", "a-1", response=OK)
    assert not await one.renew(asks("a-1"))
    assert (await store(redis, "two").begin(asks("b-1", "b2"))).standing == "CONFLICT"


async def test_a_failure_answers_who_waited_and_the_next_round_has_its_own_id(redis: RedisDoor) -> None:
    one, two, three = (store(redis, name) for name in ("one", "two", "three"))
    await one.begin(asks("a-1"))
    await two.begin(asks("b-1"))
    assert await one.finish(asks("a-1"), FAILED, is_kept=False)
    assert await two.begin(asks("b-1"), "a-1") == Claim("OVER", "a-1", response=FAILED)
    assert await three.begin(asks("c-1")) == Claim("RUN", "c-1")
    assert (await two.begin(asks("b-2"), "a-1")).standing == "WAIT"
    assert await three.finish(asks("c-1"), None, is_kept=False)  # too large to keep
    assert await two.begin(asks("b-3"), "c-1") == Claim("OVER", "c-1")


async def test_giving_up_lets_the_next_one_in_at_once_and_a_lost_record_is_written_again(redis: RedisDoor) -> None:
    one, two = store(redis, "one"), store(redis, "two")
    await one.begin(asks("a-1"))
    assert await one.give_up(asks("a-1"))
    assert await two.begin(asks("b-1")) == Claim("RUN", "a-1")
    record = keys.idempotency(redis.prefix, "acme", "order:1")
    await redis.command("DEL", record)
    assert await two.renew(asks("a-1"))
    assert (await one.begin(asks("a-2"))).standing == "WAIT"
    await redis.command("DEL", record)
    assert await two.finish(asks("a-1"), OK, is_kept=True)
    assert (await one.begin(asks("a-2"))).standing == "DONE"
    assert int(await redis.command("PTTL", record)) > 0
