"""A producer that is closed, or made anew, while the broker takes nothing."""

from __future__ import annotations

import asyncio

import pytest

from contracts.adapters.kafka import Admin, Partition, Producer, Reader
from contracts.adapters.kafka import producer as adapter
from contracts.errors import TransportError
from contracts.settings import KafkaSettings
from deploy.embedded.processes import Server
from tests.helpers import wait_until

TOPIC = "closing"


async def test_nothing_of_a_closed_producer_lives_on_although_the_broker_stalled(
    own_log: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adapter, "STOP_SECONDS", 0.2)
    settings = KafkaSettings(bootstrap=own_log.address)
    admin, producer, reader = Admin(settings), Producer(settings), Reader(settings)
    await admin.open()
    await admin.ensure_topic(TOPIC, 1)
    await admin.close()
    before, loop = asyncio.all_tasks(), asyncio.get_running_loop()
    await producer.open()
    await producer.publish_many(TOPIC, 0, [(b"taken", [])])
    connections = list(producer._live.client._conns.values())
    own_log.children[0].pause()
    try:
        waiting = [
            loop.create_task(producer.publish_many(TOPIC, 0, [(value, [])], timeout_seconds=None))
            for value in (b"sent", b"queued", b"queued behind")
        ]
        while not producer._live._sender._in_flight:
            await asyncio.sleep(0)
        await producer.close()
        assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [TransportError] * 3
    finally:
        own_log.children[0].resume()
    await wait_until(lambda: asyncio.all_tasks() <= before)
    assert [connection for connection in connections if connection.connected()] == []
    assert caplog.records == []
    await reader.open()
    reader.assign([Partition(TOPIC, 0)])
    reader.begin(Partition(TOPIC, 0), 0)
    found = [record.value for records in (await reader.poll(timeout_ms=1000)).values() for record in records]
    await reader.close()
    assert found in ([b"taken"], [b"taken", b"sent"])  # the connection may have held it
