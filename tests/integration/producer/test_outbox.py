"""What a failed send costs: nobody an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts import topics
from contracts.adapters.kafka import AckUnknown, Producer, TopicMissing
from contracts.errors import InvalidRequest, TransportError
from contracts.messages import Status
from contracts.settings import KafkaSettings, RedisSettings
from deploy.embedded.processes import Server
from deploy.embedded.servers import start_embedded_log
from producer.client import InferenceClient
from tests.helpers import unique_name, wait_until
from tests.integration.producer.kit import ECHO, Fleet, Responder, clear_faults, echo, row, set_fault, silent

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the log of these tests keeps its segments, and the door for its faults."""
    return tmp_path_factory.mktemp("faulty") / "log"


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[Server]:
    """An embedded log that these tests may harm; it is whole again after each."""
    server = start_embedded_log(folder)
    yield server
    server.kill()


@pytest.fixture
async def fleet(log: Server, folder: Path, any_redis_settings: RedisSettings) -> Fleet:
    """The echo model on that log."""
    clear_faults(folder)
    fleet = Fleet(KafkaSettings(bootstrap=log.address, prefix=unique_name()), any_redis_settings)
    await fleet.deploy(ECHO)
    return fleet


@pytest.fixture
def requests_topic(fleet: Fleet) -> str:
    return topics.requests(fleet.kafka.prefix, "echo", 1)


async def test_a_lost_acknowledgement_fails_nobody(
    fleet: Fleet, responder: Responder, requests_topic: str, folder: Path
) -> None:
    async with InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        set_fault(folder, kind="drop_answer", api="PRODUCE", topic=requests_topic, times=1)
        responses = await asyncio.gather(*(client.infer("echo", row(float(number))) for number in range(50)))
        assert [float(response["row"].to_numpy()[0, 0]) for response in responses] == [float(n) for n in range(50)]
        assert client.stats().responses == 51


async def test_a_producer_that_cannot_go_on_is_replaced_and_everybody_answered(
    fleet: Fleet, responder: Responder, requests_topic: str, folder: Path
) -> None:
    async with InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        code = "out_of_order_sequence_number"
        set_fault(folder, kind="refuse", api="PRODUCE", topic=requests_topic, code=code, times=1)
        responses = await asyncio.gather(*(client.infer("echo", row(float(number))) for number in range(50)))
        assert [float(response["row"].to_numpy()[0, 0]) for response in responses] == [float(n) for n in range(50)]
        assert client.stats().rebuilds == 1
        assert (await client.infer("echo", row())).status is Status.OK


async def test_a_broker_that_refuses_for_good_is_a_transport_error(
    fleet: Fleet, responder: Responder, requests_topic: str, folder: Path
) -> None:
    async with InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        code = "invalid_required_acks"
        set_fault(folder, kind="refuse", api="PRODUCE", topic=requests_topic, code=code)
        with pytest.raises(TransportError):
            await client.infer("echo", row())
        assert client.stats().in_flight == 0


@pytest.mark.parametrize(
    ("code", "error"), [("message_too_large", InvalidRequest), ("topic_authorization_failed", TopicMissing)]
)
async def test_a_refusal_that_names_its_reason_reaches_the_caller(
    fleet: Fleet, requests_topic: str, folder: Path, code: str, error: type[Exception]
) -> None:
    async with InferenceClient(fleet.settings()) as client:
        set_fault(folder, kind="refuse", api="PRODUCE", topic=requests_topic, code=code)
        with pytest.raises(error, match="publishing to"):
            await client.infer("echo", row())
        assert client.stats().rebuilds == 0


async def test_requests_ride_over_the_restart_of_the_broker(fleet: Fleet, responder: Responder, log: Server) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as client:
        await client.submit("echo", row())
        await wait_until(lambda: responder.seen)
        await asyncio.to_thread(log.kill)
        tasks = [asyncio.get_running_loop().create_task(client.infer("echo", row(1))) for _ in range(20)]
        responder.behave = lambda seen: [] if seen is responder.seen[0] else echo(seen)
        await asyncio.to_thread(log.start)
        responses = await asyncio.gather(*tasks)
        assert {response.status for response in responses} == {Status.OK}


async def test_a_producer_that_died_while_nothing_was_in_flight_is_replaced_by_the_next_request(
    fleet: Fleet, responder: Responder
) -> None:
    async with InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        await client._outbox._producer.close()
        assert (await client.infer("echo", row())).status is Status.OK
        assert client.stats().rebuilds == 1
        await client._outbox._producer.close()
        responder.behave = silent
        name = await client.publish("echo", row())
        await wait_until(lambda: responder.seen[-1].id == name)
        assert client.stats().rebuilds == 2


async def test_a_broker_that_is_merely_slow_costs_no_producer(
    fleet: Fleet, responder: Responder, requests_topic: str, folder: Path
) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings()) as client:
        await client.publish("echo", row())
        producer = client._outbox._producer
        set_fault(folder, kind="delay", api="PRODUCE", topic=requests_topic, ms=500, times=1)
        with pytest.raises(AckUnknown, match="may have arrived"):
            await client.publish("echo", row(), ttl_seconds=0.1)
        assert client._outbox._producer is producer
        assert client.stats().rebuilds == 0
        await client.publish("echo", row())
        await wait_until(lambda: len(responder.seen) == 3)


async def test_a_batch_that_is_late_is_told_from_one_that_failed(
    fleet: Fleet, requests_topic: str, folder: Path
) -> None:
    producer = Producer(fleet.kafka)
    await producer.open()
    try:
        set_fault(folder, kind="delay", api="PRODUCE", topic=requests_topic, ms=500, times=1)
        with pytest.raises(AckUnknown):
            await producer.publish_many(requests_topic, 0, [(b"late", [])], timeout_seconds=0.1)
        ack = await producer.publish_many(requests_topic, 0, [(b"next", [])])
        assert ack is not None
        assert ack.offset == 1
    finally:
        await producer.close()


async def test_requests_that_expired_while_the_broker_was_away_are_not_published(
    fleet: Fleet, responder: Responder, log: Server
) -> None:
    responder.behave = silent
    async with InferenceClient(fleet.settings(grace_seconds=0.0, ttl_seconds=0.3)) as client:
        await client.submit("echo", row(), key="k")
        await wait_until(lambda: responder.seen)
        await asyncio.to_thread(log.kill)
        expired = []
        for _ in range(3):  # the first of them is in the hands of the library by then
            expired += [await client.submit("echo", row(), key="k") for _ in range(20)]
            await asyncio.gather(*(handle.result(raise_on_error=False) for handle in expired))
        await asyncio.to_thread(log.start)
        last = await client.submit("echo", row(), ttl_seconds=30.0, key="k")
        await wait_until(lambda: responder.seen[-1].id == last.id, timeout=30.0)
        assert not {handle.id for handle in expired[20:]} & {seen.id for seen in responder.seen}
