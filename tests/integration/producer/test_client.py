"""The client against a real log and a real Redis, with a responder that plays the worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

import numpy as np
import pytest
from pydantic import SecretStr

from contracts import topics
from contracts.adapters.cancels import Cancels
from contracts.adapters.registry import Registry
from contracts.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PoisonRequest,
    RequestError,
    TransportError,
)
from contracts.messages import Parameters, Response, Status
from contracts.names import ModelVersion
from contracts.settings import KafkaSettings, RedisSettings
from contracts.specs import DeploymentSpec
from contracts.tensors import Tensor
from producer.client import InferenceClient
from producer.plan import Inputs
from tests.helpers import unique_name, wait_until
from tests.integration.producer.kit import ECHO, PARTITIONS, Fleet, Responder, Seen, echo, refuse, row, silent


def value_of(response: Response) -> float:
    return float(response["row"].to_numpy()[0, 0])


def number_of(seen: Seen) -> float:
    return float(seen.body.inputs[0].to_numpy()[0, 0])


async def cancelled_ids(fleet: Fleet) -> set[str]:
    async with fleet.door() as door:
        _, cancels = await Cancels(door).recent(60_000)
    return {cancel.request_id for cancel in cancels}


async def test_a_request_is_answered_on_every_kind_of_kafka_and_redis(
    kafka_settings: KafkaSettings, redis_settings: RedisSettings
) -> None:
    fleet = Fleet(kafka_settings, redis_settings)
    await fleet.deploy(ECHO)
    async with Responder(fleet.kafka), InferenceClient(fleet.settings()) as client:
        response = await client.infer("echo", row(7))
        assert value_of(response) == 7.0
        assert (response.model, response.version, response.status) == ("echo", 1, Status.OK)
        assert [tensor.name for tensor in response.outputs] == ["row"]


async def test_many_requests_in_flight_each_get_their_own_answer(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        responses = await asyncio.gather(*(client.infer("echo", row(float(number))) for number in range(1000)))
        assert [value_of(response) for response in responses] == [float(number) for number in range(1000)]
        stats = client.stats()
        assert (stats.requests, stats.responses, stats.in_flight) == (1000, 1000, 0)
        assert stats.duplicate == stats.late == stats.unknown == stats.foreign == 0
    spread = Counter(seen.partition for seen in responder.seen)
    assert set(spread) == set(range(PARTITIONS))
    assert max(spread.values()) <= 2 * min(spread.values())


async def test_the_receipt_accounts_for_the_whole_time(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        started = time.perf_counter()
        receipt = (await client.infer("echo", row())).receipt
        elapsed_us = (time.perf_counter() - started) * 1e6
    assert receipt.worker == "responder"
    assert 0 < receipt.total_us <= elapsed_us
    assert receipt.returned_us == receipt.total_us - 3


async def test_tensors_parameters_ids_and_keys_reach_the_worker(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        tensor = Tensor.from_numpy("row", np.zeros((1, 2), np.float32))
        parameters: Parameters = {"top_k": 3}
        await client.infer("echo@1", [tensor], parameters=parameters, request_id="mine-1", key="customer-7")
        await client.infer("echo", [tensor], version=1, request_id="mine-2", key="customer-7", ttl_seconds=12.5)
        await client.infer("echo", [tensor], key=b"customer-7")
    first, second, third = responder.seen
    assert (first.id, second.id) == ("mine-1", "mine-2")
    assert first.body.parameters == {"top_k": 3}
    assert (first.headers.ttl_ms, second.headers.ttl_ms) == (30_000, 12_500)
    assert first.partition == second.partition == third.partition


ERRORS: dict[Status, type[RequestError]] = {
    Status.INVALID: InvalidRequest,
    Status.DEADLINE_EXCEEDED: DeadlineExceeded,
    Status.CANCELLED: Cancelled,
    Status.OVERLOADED: Overloaded,
    Status.POISON: PoisonRequest,
    Status.INTERNAL: InternalError,
}


async def test_every_status_is_its_own_exception(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        for status, error in ERRORS.items():
            responder.behave = refuse(status, "because")
            with pytest.raises(error, match="because"):
                await client.infer("echo", row())
            response = await client.infer("echo", row(), raise_on_error=False)
            assert response.status is status


async def test_what_is_knowably_wrong_is_never_published(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        wrong: list[Inputs] = [{"row": np.zeros((1, 3), np.float32)}, {"x": [1.0]}, row(*[1.0] * 40_000)]
        for inputs in wrong:
            with pytest.raises(InvalidRequest):
                await client.infer("echo", inputs)
        for options in ({"ttl_seconds": 0.0}, {"request_id": "a b"}):
            with pytest.raises(InvalidRequest):
                await client.infer("echo", row(), **options)
        with pytest.raises(ModelNotFound, match="deployed: echo@1"):
            await client.infer("ecko", row())
        with pytest.raises(ModelNotFound, match="echo@2 is not deployed"):
            await client.infer("echo@2", row())
        with pytest.raises(ModelNotFound, match="contradict"):
            await client.infer("echo@1", row(), version=2)
        assert client.stats().requests == 0
        await client.infer("echo", row(), request_id="last")
    assert [seen.id for seen in responder.seen] == ["last"]


async def test_a_version_deployed_a_moment_ago_is_found_and_a_new_route_is_followed(
    fleet: Fleet, responder: Responder
) -> None:
    second = ModelVersion("echo", 2)
    await fleet.create_topic(topics.requests(fleet.kafka.prefix, "echo", 2))
    async with Responder(fleet.kafka, key=second) as other, InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        await fleet.deploy(second, default=True)
        await client.infer("echo@2", row())
        assert len(other.seen) == 1

        async def follows_route() -> bool:
            await client.infer("echo", row())
            return len(other.seen) > 1

        await wait_until(follows_route, "requests without a version still go to version 1")
        async with fleet.door() as door:
            await Registry(door, fleet.redis.pool).delete_deployment(ECHO)

        async def is_gone() -> bool:
            with contextlib.suppress(ModelNotFound):
                await client.infer("echo@1", row())
                return False
            return True

        await wait_until(is_gone, "a version that is not deployed any more is still found")


async def test_a_full_window_refuses_at_once_and_serves_again(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings(max_in_flight=3)) as client:
        handles = [await client.submit("echo", row()) for _ in range(3)]
        with pytest.raises(Overloaded, match="3 requests are in flight"):
            await client.infer("echo", row())
        await wait_until(lambda: len(responder.seen) == 3)
        responder.behave = echo
        for seen in responder.seen:
            await responder.send(seen.reply, echo(seen)[0])
        for handle in handles:
            await handle.result()
        assert (await client.infer("echo", row(5))).status is Status.OK


async def test_silence_ends_in_deadline_exceeded_from_the_client_itself(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings(grace_seconds=0.2)) as client:
        started = time.perf_counter()
        with pytest.raises(DeadlineExceeded, match="answered by the client itself"):
            await client.infer("echo", row(), ttl_seconds=0.1)
        assert 0.3 <= time.perf_counter() - started < 5.0
        assert client.stats().expired == 1
        await wait_until(lambda: responder.seen)
        await responder.send(responder.seen[0].reply, echo(responder.seen[0])[0])
        await wait_until(lambda: client.stats().late == 1)


async def test_a_cancelled_task_frees_its_place_leaves_a_tombstone_and_harms_nobody(
    fleet: Fleet, responder: Responder
) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings(max_in_flight=2)) as client:
        doomed = asyncio.get_running_loop().create_task(client.infer("echo", row(), request_id="doomed"))
        other = await client.submit("echo", row(3), request_id="other")
        await wait_until(lambda: len(responder.seen) == 2)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert client.stats().in_flight == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.infer("echo", row(), request_id="impatient")

        async def both_written() -> bool:
            return await cancelled_ids(fleet) == {"doomed", "impatient"}

        await wait_until(both_written)
        for seen in list(responder.seen):
            await responder.send(seen.reply, echo(seen)[0])
        assert value_of(await other.result()) == 3.0
        await wait_until(lambda: client.stats().late >= 1)
        assert client.stats().abandoned == 2


async def test_a_handle_is_awaited_by_many_and_outlives_their_impatience(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as client:
        handle = await client.submit("echo", row(4), request_id="h")
        assert (handle.id, handle.done) == ("h", False)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await handle.result()
        await wait_until(lambda: responder.seen)
        await responder.send(responder.seen[0].reply, echo(responder.seen[0])[0])
        first, second = await asyncio.gather(handle.result(), handle.result())
        assert handle.done
        assert value_of(first) == value_of(second) == 4.0
        await handle.cancel()  # nothing left to cancel
        assert await cancelled_ids(fleet) == set()


async def test_cancelling_a_handle_tells_the_workers_and_ends_in_one_terminal(
    fleet: Fleet, responder: Responder
) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as client:
        handle = await client.submit("echo", row(), request_id="unwanted")
        await handle.cancel()
        assert await cancelled_ids(fleet) == {"unwanted"}
        assert not handle.done
        await wait_until(lambda: responder.seen)
        await responder.send(responder.seen[0].reply, refuse(Status.CANCELLED)(responder.seen[0])[0])
        with pytest.raises(Cancelled):
            await handle.result()


async def test_closing_fails_every_waiter_and_whoever_comes_later(fleet: Fleet, responder: Responder) -> None:
    responder.behave = silent
    client = await InferenceClient(fleet.settings()).open()
    tasks = [asyncio.get_running_loop().create_task(client.infer("echo", row())) for _ in range(20)]
    handle = await client.submit("echo", row())
    await wait_until(lambda: client.stats().in_flight == 21)
    await asyncio.gather(client.close(), client.close())
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, ClientClosed) for outcome in outcomes)
    with pytest.raises(ClientClosed):
        await handle.result()
    for call in (client.infer("echo", row()), client.submit("echo", row()), client.publish("echo", row())):
        with pytest.raises(ClientClosed):
            await call


async def test_a_client_that_is_not_open_says_so(fleet: Fleet) -> None:
    client = InferenceClient(fleet.settings())
    with pytest.raises(ClientClosed, match="not open"):
        await client.infer("echo", row())
    with pytest.raises(ClientClosed, match="not open"):
        await anext(client.map("echo", [row()]))
    assert client.stats().requests == 0
    await client.close()
    with pytest.raises(ClientClosed, match="opened once"):
        await client.open()


async def test_a_dead_reply_loop_fails_all_waiters(
    fleet: Fleet, responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as client:
        handle = await client.submit("echo", row())
        monkeypatch.setattr(client._inbox, "_turn", None)
        with pytest.raises(TransportError, match="cannot go on"):
            await handle.result()
        with pytest.raises(TransportError, match="cannot go on"):
            await client.infer("echo", row())


@pytest.mark.parametrize("ordered", [True, False])
async def test_map_is_bounded_and_answers_every_input_once(
    fleet: Fleet, responder: Responder, *, ordered: bool
) -> None:
    taken = yielded = most = 0

    def inputs() -> list[Inputs]:
        return [row(float(number)) for number in range(500)]

    async def counted() -> AsyncIterator[Inputs]:
        nonlocal taken, most
        for item in inputs():
            taken += 1
            most = max(most, taken - yielded)
            yield item

    async with InferenceClient(fleet.settings()) as client:
        values = []
        async for response in client.map("echo", counted(), in_flight=32, ordered=ordered):
            yielded += 1
            values.append(value_of(response))
        assert most <= 33  # the one that waits for room has been taken as well
        expected = [float(number) for number in range(500)]
        assert (values if ordered else sorted(values)) == expected
        assert [value_of(r) async for r in client.map("echo", inputs(), in_flight=600)] == expected


async def test_map_reports_errors_as_responses_or_raises_on_request(fleet: Fleet, responder: Responder) -> None:
    poison = refuse(Status.POISON)
    responder.behave = lambda seen: poison(seen) if number_of(seen) == 2.0 else echo(seen)
    inputs: list[Inputs] = [row(1), row(2), {"row": np.zeros((1, 9), np.float32)}, row(3)]
    async with InferenceClient(fleet.settings()) as client:
        statuses = [response.status async for response in client.map("echo", inputs)]
        assert statuses == [Status.OK, Status.POISON, Status.INVALID, Status.OK]
        with pytest.raises(PoisonRequest):
            async for _ in client.map("echo", inputs, raise_on_error=True):
                pass
        with pytest.raises(ModelNotFound):
            async for _ in client.map("nothing", inputs):
                pass
        await wait_until(lambda: client.stats().in_flight == 0)


async def test_leaving_a_map_early_abandons_the_rest(fleet: Fleet, responder: Responder) -> None:
    responder.behave = lambda seen: echo(seen) if number_of(seen) < 2 else []
    async with InferenceClient(fleet.settings()) as client:
        responses = client.map("echo", (row(float(number)) for number in range(1000)), in_flight=10)
        async for response in responses:
            if value_of(response) == 1.0:
                break
        await responses.aclose()
        assert client.stats().in_flight == 0

        async def tombstones() -> bool:
            return len(await cancelled_ids(fleet)) == client.stats().abandoned > 0

        await wait_until(tombstones)


async def test_map_waits_while_others_fill_the_window(fleet: Fleet, responder: Responder) -> None:
    responder.behave = lambda seen: [] if seen.id == "blocker" else echo(seen)
    async with InferenceClient(fleet.settings(max_in_flight=1)) as client:
        blocker = await client.submit("echo", row(), request_id="blocker")
        responses = client.map("echo", [row(1), row(2)])
        first = asyncio.get_running_loop().create_task(anext(responses))
        await wait_until(lambda: client.stats().overloaded > 0)
        assert not first.done()
        await wait_until(lambda: responder.seen)
        await responder.send(responder.seen[0].reply, echo(responder.seen[0])[0])
        assert value_of(await first) == 1.0
        assert [value_of(response) async for response in responses] == [2.0]
        await blocker.result()


async def test_publish_sends_the_response_where_the_caller_says(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        topic = f"{fleet.kafka.prefix}.replies.other"
        await fleet.create_topic(topic)
        name = await client.publish("echo", row(), reply_to=f"{topic}/3/token", ttl_seconds=5)
        await wait_until(lambda: responder.seen)
        seen = responder.seen[0]
        assert (seen.id, seen.headers.ttl_ms) == (name, 5000)
        assert str(seen.headers.reply) == f"{topic}/3/token"
        responder.behave = silent
        await client.publish("echo", row(), request_id="fire-and-forget")
        await wait_until(lambda: len(responder.seen) == 2)
        assert responder.seen[1].headers.reply is None
        assert client.stats().requests == 0
        for address in ("nonsense", "elsewhere/0/token", f"{topic}/x/token"):
            with pytest.raises(InvalidRequest, match="reply_to"):
                await client.publish("echo", row(), reply_to=address)


async def test_a_server_that_cannot_be_reached_is_a_transport_error(fleet: Fleet) -> None:
    no_kafka = Fleet(fleet.kafka.model_copy(update={"bootstrap": "127.0.0.1:1"}), fleet.redis)
    no_redis = Fleet(fleet.kafka, RedisSettings(url=SecretStr("redis://127.0.0.1:1/0")))
    for unreachable in (no_kafka, no_redis):
        with pytest.raises(TransportError):
            await InferenceClient(unreachable.settings()).open()


async def test_a_deployment_without_a_topic_is_a_retryable_error(fleet: Fleet) -> None:
    async with fleet.door() as door:
        await Registry(door, fleet.redis.pool).put_deployment(DeploymentSpec(model="early", version=1))
    async with InferenceClient(fleet.settings()) as client:
        client._outbox._producer._settings = fleet.kafka.model_copy(update={"request_timeout_seconds": 0.2})
        with pytest.raises(TransportError, match="does not exist") as caught:
            await client.infer("early", row())
        assert caught.value.retryable


async def test_settings_may_come_as_keywords(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__PREFIX", fleet.kafka.prefix)
    monkeypatch.setenv("HEADRACE_REDIS__PREFIX", fleet.redis.prefix)
    url = fleet.redis.url.get_secret_value()
    async with (
        Responder(fleet.kafka),
        InferenceClient(bootstrap=fleet.kafka.bootstrap, redis=url, inbox=unique_name(), max_in_flight=7) as client,
    ):
        assert client._settings.client.max_in_flight == 7
        assert (await client.infer("echo", row())).status is Status.OK
