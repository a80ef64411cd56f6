"""Idempotency keys, the response cache and single flight, against a real log, a real Redis and a responder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter

import numpy as np
import pytest

from contracts.adapters.idempotency import Idempotency, KeyedRequest
from contracts.codec import encode_request
from contracts.errors import ClientClosed, InternalError, InvalidRequest, Overloaded
from contracts.messages import Response, Status
from contracts.settings import KafkaSettings, RedisSettings
from contracts.tensors import Tensor
from deploy.embedded.processes import Server
from producer.client import InferenceClient
from producer.idempotency import digest
from producer.settings import CacheSettings, ClientSettings, IdempotencySettings
from producer.sync import SyncInferenceClient
from tests.helpers import unique_name, wait_until
from tests.integration.producer.kit import ECHO, Fleet, Responder, Seen, echo, refuse, row, silent

KEYS = 200


def keyed(fleet: Fleet, **own: object) -> ClientSettings:
    return fleet.settings().model_copy(update={"idempotency": IdempotencySettings.model_validate(own)})


def caching(fleet: Fleet, **own: object) -> ClientSettings:
    return fleet.settings().model_copy(update={"cache": CacheSettings.model_validate(own)})


def value_of(response: Response) -> float:
    return float(response["row"].to_numpy()[0, 0])


async def answer(responder: Responder, seen: Seen) -> None:
    await responder.send(seen.reply, echo(seen)[0])


async def test_repetitions_from_two_clients_run_once_and_all_get_the_result(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as one, InferenceClient(fleet.settings()) as two:
        calls = [
            client.infer("echo", row(float(number)), idempotency_key=f"order-{number}")
            for number in range(KEYS)
            for client in (one, two, one)
        ]
        responses = await asyncio.gather(*calls)
        assert [value_of(response) for response in responses] == [float(n) for n in range(KEYS) for _ in range(3)]
        assert len({response.id for response in responses}) == KEYS
        assert Counter(response.cached for response in responses) == {False: KEYS, True: 2 * KEYS}
        later = await two.infer("echo", row(7.0), idempotency_key="order-7")
        assert (later.id, later.cached) == (responses[7 * 3].id, True)
    assert len(responder.seen) == KEYS


async def test_another_body_under_a_key_is_refused_here_and_elsewhere(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as one, InferenceClient(fleet.settings()) as two:
        handle = await one.submit("echo", row(1), idempotency_key="k")
        for client in (one, two):
            with pytest.raises(InvalidRequest, match=f"'k' is taken: request {handle.id}"):
                await client.infer("echo", row(2), idempotency_key="k")
            with pytest.raises(InvalidRequest, match="taken"):
                await client.infer("echo", row(1), parameters={"top_k": 1}, idempotency_key="k")
        await wait_until(lambda: responder.seen)
        await answer(responder, responder.seen[0])
        assert value_of(await handle.result()) == 1.0
        with pytest.raises(InvalidRequest, match="taken"):
            await two.infer("echo", row(2), idempotency_key="k")
        with pytest.raises(InvalidRequest, match="idempotency_key must be"):
            await two.infer("echo", row(2), idempotency_key="no spaces")
    assert len(responder.seen) == 1


async def test_a_waiter_takes_over_from_a_client_that_closed(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as two:
        async with InferenceClient(fleet.settings()) as one:
            first = await one.submit("echo", row(5), idempotency_key="k")
            second = await two.submit("echo", row(5), idempotency_key="k")
            assert first.id == second.id
            await wait_until(lambda: len(responder.seen) == 1)
            responder.behave = echo
        with pytest.raises(ClientClosed):
            await first.result()
        assert value_of(await second.result()) == 5.0
    assert [seen.id for seen in responder.seen] == [first.id, first.id]
    assert responder.seen[0].reply != responder.seen[1].reply


async def test_a_waiter_takes_over_from_a_submitter_that_is_not_heard_of(fleet: Fleet, responder: Responder) -> None:
    content = encode_request([Tensor.from_numpy("row", np.array([[5.0, -5.0]], np.float32))])
    async with fleet.door() as door, InferenceClient(fleet.settings()) as client:
        dead = Idempotency(door, "default", holder="dead", mark_ms=300, keep_ms=60_000)
        claim = await dead.begin(KeyedRequest("k", digest("echo", content), "its-id"))
        assert claim.standing == "RUN"
        response = await client.infer("echo", row(5), idempotency_key="k")
        assert (response.id, value_of(response), response.cached) == ("its-id", 5.0, False)
    assert [seen.id for seen in responder.seen] == ["its-id"]


PROGRAM = """
import asyncio, sys
from producer.client import InferenceClient
from producer.settings import ClientSettings

async def main():
    async with InferenceClient(ClientSettings.model_validate_json(sys.argv[1])) as client:
        await client.infer("echo", {"row": [[5.0, -5.0]]}, idempotency_key="k", request_id="its-id")

asyncio.run(main())
"""


async def test_a_waiter_takes_over_from_a_process_that_was_killed(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    settings = keyed(fleet, mark_seconds=1.5)
    told = {"url": fleet.redis.url.get_secret_value(), "prefix": fleet.redis.prefix, "pool": fleet.redis.pool}
    text = json.dumps(
        {**settings.model_dump(mode="json", include={"idempotency"}), "redis": told}
        | {"kafka": {"bootstrap": fleet.kafka.bootstrap, "prefix": fleet.kafka.prefix}}
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, text)
    try:
        await wait_until(lambda: responder.seen)
        async with InferenceClient(settings) as client:
            waiting = await client.submit("echo", row(5), idempotency_key="k")
            assert waiting.id == "its-id"
            child.kill()
            responder.behave = echo
            assert value_of(await waiting.result()) == 5.0
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    assert [seen.id for seen in responder.seen] == ["its-id", "its-id"]


async def test_a_slow_request_keeps_its_mark(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    settings = keyed(fleet, mark_seconds=0.3)
    async with InferenceClient(settings) as one, InferenceClient(settings) as two:
        handles = [await client.submit("echo", row(5), idempotency_key="k") for client in (one, two)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await handles[1].result()
        assert len(responder.seen) == 1
        await answer(responder, responder.seen[0])
        assert [value_of(await handle.result()) for handle in handles] == [5.0, 5.0]


async def test_a_key_goes_on_without_its_callers(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.infer("echo", row(5), idempotency_key="k")
        handle = await client.submit("echo", row(5), idempotency_key="k")
        await handle.cancel()  # others may wait for it
        await wait_until(lambda: responder.seen)
        await answer(responder, responder.seen[0])
        response = await handle.result()
        assert (value_of(response), response.cached, response.id) == (5.0, True, handle.id)
    assert len(responder.seen) == 1


async def test_a_failure_is_shared_by_those_who_waited_and_the_next_one_tries_again(
    fleet: Fleet, responder: Responder
) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as one, InferenceClient(fleet.settings()) as two:
        handles = [await client.submit("echo", row(5), idempotency_key="k") for client in (one, one, two)]
        await wait_until(lambda: responder.seen)
        await responder.send(responder.seen[0].reply, refuse(Status.INTERNAL, "bad luck")(responder.seen[0])[0])
        for handle in handles:
            with pytest.raises(InternalError, match="bad luck"):
                await handle.result()
        responder.behave = echo
        response = await two.infer("echo", row(5), idempotency_key="k")
        assert response.id != handles[0].id
        assert (await one.infer("echo", row(5), idempotency_key="k")).id == response.id
    assert len(responder.seen) == 2


async def test_who_waits_longer_than_the_submitter_begins_again(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    settings = fleet.settings(grace_seconds=0.1)
    async with InferenceClient(settings) as one, InferenceClient(settings) as two:
        brief = await one.submit("echo", row(5), idempotency_key="k", ttl_seconds=0.2)
        patient = [await client.submit("echo", row(5), idempotency_key="k") for client in (one, two)]
        await wait_until(lambda: len(responder.seen) == 1)
        responder.behave = echo
        assert (await brief.result(raise_on_error=False)).status is Status.DEADLINE_EXCEEDED
        assert [value_of(await handle.result()) for handle in patient] == [5.0, 5.0]
    assert len(responder.seen) == 2


async def test_a_response_that_is_too_large_to_keep_is_run_again_elsewhere(fleet: Fleet, responder: Responder) -> None:
    settings = keyed(fleet, max_response_bytes=4)
    async with InferenceClient(settings) as one, InferenceClient(settings) as two:
        responses = await asyncio.gather(*(c.infer("echo", row(5), idempotency_key="k") for c in (one, one, two)))
    assert [value_of(response) for response in responses] == [5.0] * 3
    assert len(responder.seen) == 2


async def test_without_redis_only_requests_with_a_key_are_refused(
    log_settings: KafkaSettings, own_redis: Server
) -> None:
    fleet = Fleet(log_settings, RedisSettings(url=own_redis.address, prefix=unique_name()))
    await fleet.deploy(ECHO)
    async with Responder(fleet.kafka) as responder, InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        own_redis.kill()
        with pytest.raises(Overloaded, match="'k' cannot be looked up") as caught:
            await client.infer("echo", row(), idempotency_key="k")
        assert caught.value.retryable
        assert (await client.infer("echo", row())).status is Status.OK
        assert len(responder.seen) == 2


async def test_blocking_code_has_keys_too(fleet: Fleet, responder: Responder) -> None:
    def calls() -> list[Response]:
        with SyncInferenceClient(fleet.settings()) as client:
            handle = client.submit("echo", row(5), idempotency_key="k")
            return [handle.result(), client.infer("echo", row(5), idempotency_key="k", cache=True)]

    responses = await asyncio.to_thread(calls)
    assert [response.cached for response in responses] == [False, True]
    assert len(responder.seen) == 1


# --- without a key ----------------------------------------------------------------------------------------------------


async def test_the_cache_answers_equal_calls_and_only_those_that_want_it(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(caching(fleet, ttl_seconds=60)) as client:
        first = await client.infer("echo", row(1), cache=True)
        second = await client.infer("echo@1", row(1), cache=True)
        handle = await client.submit("echo", row(1), cache=True)
        assert (first.cached, second.cached, handle.done) == (False, True, True)
        assert (await handle.result()).id == second.id == first.id == handle.id
        assert not (await client.infer("echo", row(1))).cached
        assert not (await client.infer("echo", row(1), cache=True, parameters={"a": 1})).cached
        assert not (await client.infer("echo", row(2), cache=True)).cached
    assert len(responder.seen) == 4


async def test_the_cache_can_be_the_rule_and_forgets_what_has_no_room(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(caching(fleet, enabled=True, max_bytes=1_100)) as client:
        assert not (await client.infer("echo", row(1))).cached
        assert (await client.infer("echo", row(1))).cached
        assert not (await client.infer("echo", row(1), cache=False)).cached
        assert not (await client.infer("echo", row(2))).cached
        assert not (await client.infer("echo", row(1))).cached


async def test_an_error_is_shared_with_equal_calls_but_not_kept(fleet: Fleet, responder: Responder) -> None:
    responder.behave = refuse(Status.INTERNAL)
    async with InferenceClient(caching(fleet, enabled=True)) as client:
        outcomes = await asyncio.gather(*(client.infer("echo", row()) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InternalError] * 3
        responder.behave = echo
        assert not (await client.infer("echo", row())).cached
    assert len(responder.seen) == 2


async def test_a_cancelled_caller_leaves_alone_and_the_last_one_ends_the_request(
    fleet: Fleet, responder: Responder
) -> None:
    responder.behave = silent
    loop = asyncio.get_running_loop()
    async with InferenceClient(caching(fleet, enabled=True)) as client:
        calls = [loop.create_task(client.infer("echo", row(3))) for _ in range(3)]
        await wait_until(lambda: responder.seen)
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        await answer(responder, responder.seen[0])
        assert [value_of(await call) for call in calls[1:]] == [3.0, 3.0]
        lone = loop.create_task(client.infer("echo", row(4)))
        await wait_until(lambda: len(responder.seen) == 2)
        lone.cancel()
        again = loop.create_task(client.infer("echo", row(4)))
        await wait_until(lambda: len(responder.seen) == 3)
        assert client.stats().abandoned == 1
        await answer(responder, responder.seen[2])
        assert not (await again).cached
        assert lone.cancelled()


async def test_single_flight_can_be_off(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(caching(fleet, enabled=True, single_flight=False)) as client:
        responses = await asyncio.gather(*(client.infer("echo", row()) for _ in range(3)))
        assert not any(response.cached for response in responses)
    assert len(responder.seen) == 3


async def test_closing_ends_those_who_share(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    loop = asyncio.get_running_loop()
    async with InferenceClient(caching(fleet, enabled=True)) as client, InferenceClient(fleet.settings()) as other:
        waiting = await other.submit("echo", row(2), idempotency_key="k")
        calls = [loop.create_task(client.infer("echo", row(1))) for _ in range(2)]
        calls += [loop.create_task(client.infer("echo", row(2), idempotency_key="k")) for _ in range(2)]
        await wait_until(lambda: len(responder.seen) == 2)
        await client.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ClientClosed] * 4
        assert not waiting.done
        with pytest.raises(ClientClosed):
            await client.infer("echo", row(2), idempotency_key="k")
