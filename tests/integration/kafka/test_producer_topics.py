"""What a producer knows of its topics, when one that does not exist is asked for and after it was made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from contracts.adapters.kafka import Admin, Producer, TopicMissing
from contracts.errors import TransportError
from contracts.settings import KafkaSettings
from deploy.embedded.processes import Server


@asynccontextmanager
async def producer_for(settings: KafkaSettings, topic: str) -> AsyncIterator[Producer]:
    admin, producer = Admin(settings), Producer(settings)
    await admin.open()
    await admin.ensure_topic(topic, 1)
    await admin.close()
    await producer.open()
    try:
        yield producer
    finally:
        await producer.close()


@pytest.mark.parametrize("event", ["a rebuild", "a refresh of everything"])
async def test_a_topic_that_does_not_exist_holds_no_other_up_after(event: str, kafka_settings: KafkaSettings) -> None:
    settings = kafka_settings.model_copy(update={"request_timeout_seconds": 40.0})
    topic, missing = f"{settings.prefix}-known", f"{settings.prefix}-missing"
    async with producer_for(settings, topic) as producer:
        if event == "a refresh of everything":
            await producer._live.client.force_metadata_update()
        await producer.publish_many(topic, 0, [(b"before", [])])
        if event == "a rebuild":
            await producer.rebuild()
        looking = asyncio.get_running_loop().create_task(producer.publish_many(missing, 0, [(b"lost", [])]))
        while missing not in producer._live.client._topics:
            await asyncio.sleep(0)
        async with asyncio.timeout(20.0):
            for _ in range(3):
                await producer._live.client.force_metadata_update()
                await producer.publish_many(topic, 0, [(b"meanwhile", [])])
        assert not looking.done()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def test_a_topic_that_is_made_while_it_is_looked_for_is_found(log_settings: KafkaSettings) -> None:
    settings = log_settings.model_copy(update={"request_timeout_seconds": 40.0})
    topic, late = f"{settings.prefix}-known", f"{settings.prefix}-late"
    async with producer_for(settings, topic) as producer:
        looking = asyncio.get_running_loop().create_task(producer.publish_many(late, 0, [(b"kept", [])]))
        while late not in producer._live.client._topics:
            await asyncio.sleep(0)
        async with producer_for(settings, late):
            assert await looking is not None


async def test_a_topic_that_does_not_exist_is_said_to_be_missing_again_and_again(log_settings: KafkaSettings) -> None:
    settings = log_settings.model_copy(update={"request_timeout_seconds": 0.3})
    missing = f"{settings.prefix}-missing"
    async with producer_for(settings, f"{settings.prefix}-known") as producer:
        for _ in range(2):
            with pytest.raises(TopicMissing, match="does not exist"):
                await producer.publish_many(missing, 0, [(b"lost", [])])
        assert missing not in producer._live.client._topics


async def test_a_topic_of_which_no_broker_says_anything_is_not_taken_for_missing(own_log: Server) -> None:
    settings = KafkaSettings(bootstrap=own_log.address, request_timeout_seconds=0.5)
    async with producer_for(settings, "there") as producer:
        own_log.children[0].pause()
        try:
            with pytest.raises(TransportError) as caught:
                await producer.publish_many("there", 0, [(b"kept", [])])
        finally:
            own_log.children[0].resume()
        assert not isinstance(caught.value, TopicMissing)
        await producer.rebuild()
        assert await producer.publish_many("there", 0, [(b"kept", [])]) is not None
