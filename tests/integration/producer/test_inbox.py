"""The reply inbox: leases, strays, and what happens when the lease or the reader is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts import keys, topics
from contracts.adapters.kafka import Admin, Partition, Record, UnreadableRecord
from contracts.adapters.kafka.fetching import Deliver
from contracts.errors import Overloaded, TransportError
from contracts.messages import ReplyAddress, ResponseBody, Status
from deploy.embedded.processes import Server
from producer.client import InferenceClient
from producer.settings import InboxSettings
from tests.contract.log_raw import PRODUCE, PRODUCE_VERSION, RawClient, unreadable_batch
from tests.helpers import wait_until
from tests.integration.producer.kit import Fleet, Reply, Responder, Seen, echo, refuse, row, set_fault, silent

OWN = InboxSettings(name="own", partitions=4)


async def test_two_clients_share_a_topic_and_read_partitions_of_their_own(fleet: Fleet, responder: Responder) -> None:
    settings = fleet.settings(inbox=OWN)
    async with InferenceClient(settings) as one, InferenceClient(settings) as other:
        for client, value in ((one, 1.0), (other, 2.0)):
            response = await client.infer("echo", row(value))
            assert response["row"].to_numpy()[0, 0] == value
        first, second = (seen.reply for seen in responder.seen)
        assert first.topic == second.topic == topics.replies(fleet.kafka.prefix, "own")
        assert first.partition != second.partition
        assert first.token != second.token
        assert one.stats().unknown == other.stats().unknown == 0


async def test_the_reply_topic_is_made_once_as_the_settings_say(fleet: Fleet) -> None:
    for partitions in (4, 9):  # whoever comes later takes it as it is
        async with InferenceClient(fleet.settings(inbox=InboxSettings(name="own", partitions=partitions))):
            pass
    admin = Admin(fleet.kafka)
    await admin.open()
    try:
        assert (await admin.partition_counts())[topics.replies(fleet.kafka.prefix, "own")] == 4
    finally:
        await admin.close()


async def test_an_inbox_without_a_free_partition_is_a_typed_error_until_one_is_given_back(fleet: Fleet) -> None:
    settings = fleet.settings(inbox=InboxSettings(name="own", partitions=2))
    async with InferenceClient(settings):
        async with InferenceClient(settings):
            with pytest.raises(Overloaded, match="all 2 partitions of inbox 'own'"):
                await InferenceClient(settings).open()
        async with InferenceClient(settings):
            pass


async def test_a_topic_that_may_not_be_created_says_what_to_do(fleet: Fleet, own_log: Server, tmp_path: Path) -> None:
    fleet.kafka = fleet.kafka.model_copy(update={"bootstrap": own_log.address})
    set_fault(tmp_path / "log", kind="refuse", api="CREATE_TOPICS", code="topic_authorization_failed")
    with pytest.raises(TransportError, match="have it created with 4 partitions"):
        await InferenceClient(fleet.settings(inbox=OWN)).open()


async def test_responses_from_before_the_client_are_not_read(fleet: Fleet, responder: Responder) -> None:
    settings = fleet.settings(inbox=InboxSettings(name="own", partitions=1))
    async with InferenceClient(settings) as first:
        old = first._inbox.address
    for number in range(10):
        await responder.send(old, Reply(f"old-{number}"))
    async with InferenceClient(settings) as second:
        await second.infer("echo", row())
        assert second.stats().unknown == 0


async def test_strays_duplicates_and_rubbish_are_counted_and_harm_nobody(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        address = client._inbox.address
        await responder.send(address, Reply("never-asked"))
        await responder.send_raw(address, b"rubbish", [("v", b"1.0"), ("id", b"x")])
        await responder.send_raw(address, b"", [])
        await responder.send_raw(address, b"", [("v", b"9.0"), ("id", b"x"), ("status", b"OK"), ("to", b"t")])
        responder.behave = lambda seen: [*echo(seen), *echo(seen), *refuse(Status.INTERNAL)(seen)]
        response = await client.infer("echo", row(3))
        assert response["row"].to_numpy()[0, 0] == 3.0
        await wait_until(lambda: client.stats().duplicate == 2)
        assert (client.stats().unknown, client.stats().malformed, client.stats().responses) == (1, 3, 1)


async def test_an_error_with_another_token_does_not_end_a_request_and_a_result_does(
    fleet: Fleet, responder: Responder
) -> None:
    body = ResponseBody("echo", 1)
    late_error = Status.DEADLINE_EXCEEDED
    responder.behave = lambda seen: [Reply(seen.id, late_error, body, "earlier-instance"), *echo(seen)]
    async with InferenceClient(fleet.settings()) as client:
        assert (await client.infer("echo", row())).status is Status.OK
        assert client.stats().foreign == 1
        responder.behave = lambda seen: [Reply(seen.id, Status.OK, body, "earlier-instance")]
        assert (await client.infer("echo", row())).status is Status.OK


def put_batch(fleet: Fleet, address: ReplyAddress, batch: bytes) -> None:
    """Put a batch into an inbox as it is."""
    part = {"index": address.partition, "records": batch}
    fields = {"acks": -1, "topic_data": [{"name": address.topic, "partition_data": [part]}]}
    with RawClient(fleet.kafka.bootstrap) as raw:
        (answer,) = raw.ask(PRODUCE, PRODUCE_VERSION, fields).responses[0].partition_responses
    assert answer.error_code == 0


async def test_records_that_cannot_be_decoded_are_passed_over_and_no_response_is_lost(
    fleet: Fleet, responder: Responder
) -> None:
    async with InferenceClient(fleet.settings()) as client:
        reader, address = client._inbox._reader, client._inbox.address

        def surrounded(seen: Seen) -> list[Reply]:
            put_batch(fleet, address, unreadable_batch(1))
            return echo(seen)

        responder.behave = surrounded
        for number in range(3):
            assert (await client.infer("echo", row(float(number))))["row"].to_numpy()[0, 0] == number
        put_batch(fleet, address, unreadable_batch(3))  # two are read before it
        responder.behave = echo
        assert (await client.infer("echo", row())).status is Status.OK
        await wait_until(lambda: not client._inbox._suspect)
        counts = client.stats()
        assert (counts.malformed, counts.responses, counts.duplicate, counts.unknown) == (6, 4, 0, 0)
        assert client._inbox._reader is reader


async def test_a_failure_that_does_not_come_back_costs_no_record(
    fleet: Fleet, responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with InferenceClient(fleet.settings()) as client:
        reader = client._inbox._reader
        poll, follow = reader.poll, reader.follow
        failures = [UnreadableRecord("in the batch"), UnreadableRecord("in the record")]
        replaced = asyncio.Event()

        async def stumbles(*partitions: Partition, **options: int) -> dict[Partition, list[Record]]:
            found = await poll(*partitions, **options)
            if found and failures:
                raise failures.pop(0)
            return found

        async def stumbles_on(deliver: Deliver, *, timeout_ms: int) -> None:
            def stumble(found: dict[Partition, list[Record]]) -> None:
                if failures:
                    raise failures.pop(0)
                deliver(found)

            replaced.set()
            await follow(stumble, timeout_ms=timeout_ms)

        monkeypatch.setattr(reader, "poll", stumbles)
        monkeypatch.setattr(reader, "follow", stumbles_on)
        await replaced.wait()
        responses = [await client.infer("echo", row(float(number))) for number in range(3)]
        assert [float(response["row"].to_numpy()[0, 0]) for response in responses] == [0.0, 1.0, 2.0]
        assert not failures
        assert client.stats().malformed == client.stats().duplicate == 0


async def steal(fleet: Fleet, address: ReplyAddress) -> None:
    """Have another client hold the lease, as after a pause longer than its ttl."""
    async with fleet.door() as door:
        name = f"{keys.inbox(door.prefix, 'own')}:{address.partition}"
        await door.command("SET", name, "thief", "PX", 60_000)


async def test_a_lost_lease_moves_new_requests_and_still_brings_the_old_ones_home(
    fleet: Fleet, responder: Responder
) -> None:
    responder.behave = silent
    quick = InboxSettings(name="own", partitions=4, ttl_seconds=0.3)
    async with InferenceClient(fleet.settings(inbox=quick)) as client:
        early = await client.submit("echo", row(1))
        await wait_until(lambda: responder.seen)
        old = client._inbox.address
        await steal(fleet, old)
        await wait_until(lambda: client._inbox.address != old, "the client did not move")
        assert client.stats().inbox_moves == 1

        late = await client.submit("echo", row(2))
        await wait_until(lambda: len(responder.seen) == 2)
        assert responder.seen[1].reply.partition != old.partition
        for seen in responder.seen:  # an error with the old token is still for us
            await responder.send(seen.reply, refuse(Status.POISON, "mine")(seen)[0])
        for handle in (early, late):
            assert (await handle.result(raise_on_error=False)).status is Status.POISON

        current = Partition(old.topic, client._inbox.address.partition)
        await wait_until(lambda: set(client._inbox._positions) == {current}, "the old partition is read for ever")
        responder.behave = echo
        assert (await client.infer("echo", row(3)))["row"].to_numpy()[0, 0] == 3.0


async def test_without_redis_requests_go_on_and_the_lease_is_taken_again(
    fleet: Fleet, own_redis: Server, responder: Responder
) -> None:
    fleet.redis = fleet.redis.model_copy(update={"url": type(fleet.redis.url)(own_redis.address)})
    await fleet.deploy(responder.key)
    quick = InboxSettings(name="own", partitions=4, ttl_seconds=0.3)
    async with InferenceClient(fleet.settings(inbox=quick)) as client:
        await client.infer("echo", row())
        own_redis.kill()
        for number in range(5):
            assert (await client.infer("echo", row(float(number)))).status is Status.OK
        handle = await client.submit("echo", row())
        await handle.result()
        own_redis.start()

        async def holds_its_partition() -> bool:
            async with fleet.door() as door:
                name = f"{keys.inbox(door.prefix, 'own')}:{client._inbox.address.partition}"
                holder: str | None = await door.command("GET", name)
                return holder == client._inbox.address.token

        await wait_until(holds_its_partition)
        assert (await client.infer("echo", row())).status is Status.OK


async def test_a_reader_that_fails_is_replaced_where_it_stood(
    fleet: Fleet, responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()

    async def fails(*_: object, **__: object) -> None:
        failed.set()
        raise TransportError("the connection is gone")

    async with InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        broken = client._inbox._reader
        monkeypatch.setattr(broken, "follow", fails)
        await failed.wait()
        responses = [await client.infer("echo", row(float(number))) for number in range(3)]
        assert [float(response["row"].to_numpy()[0, 0]) for response in responses] == [0.0, 1.0, 2.0]
        assert client._inbox._reader is not broken
        assert client.stats().duplicate == client.stats().unknown == 0


async def test_a_position_outside_the_log_is_put_right(fleet: Fleet, responder: Responder) -> None:
    async with InferenceClient(fleet.settings()) as client:
        await client.infer("echo", row())
        (partition,) = client._inbox._positions
        client._inbox._reader.begin(partition, 1_000_000)
        assert (await client.infer("echo", row())).status is Status.OK
