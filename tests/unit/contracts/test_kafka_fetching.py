"""How long fetches wait at a broker: long where nothing comes, shortly where something does or is read anew."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from contracts.adapters.kafka.connection import Partition, Record
from contracts.adapters.kafka.fetching import FETCH_WAIT_MS, IDLE_WAIT_MS, Fetcher
from contracts.adapters.kafka.wire import Exchange

FIRST, SECOND = Partition("topic", 0), Partition("topic", 1)


def batch(offset: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1024)
    builder.append(0, None, None, b"value", headers=[])
    return offset.to_bytes(8) + bytes(builder.build())[8:]


class Broker:
    """As much of the library's client as is used, and a broker behind it that has what `records` holds."""

    def __init__(self) -> None:
        self.cluster = SimpleNamespace(leader_for_partition=lambda _: 0)
        self._conns: dict[Any, Any] = {}
        self.records = b""
        self.waits: list[int] = []
        self.came = asyncio.Event()

    async def send(self, _leader: int, request: Exchange) -> None:
        wait_ms = int.from_bytes(request.encode()[4:8])
        self.waits.append(wait_ms)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self.came.wait()
        except TimeoutError:
            pass
        self.came.clear()
        records, self.records = self.records, b""
        assert request.hear is not None
        request.hear([("topic", 0, 0, records)])

    def append(self) -> None:
        self.put(batch())

    def put(self, records: bytes) -> None:
        self.records = records
        self.came.set()


async def idle_for(fetcher: Fetcher, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        assert not await fetcher.poll((), None, 100)
        fetcher.resume([FIRST])  # what is read already is not read anew


@pytest.mark.looptime
async def test_where_nothing_comes_fetches_wait_longer_and_a_record_still_arrives_at_once() -> None:
    broker = Broker()
    fetcher = Fetcher(broker)
    fetcher.assign([FIRST])
    fetcher.resume([FIRST])
    await idle_for(fetcher, 3)
    assert broker.waits[:20] == [FETCH_WAIT_MS] * 20
    assert set(broker.waits[20:]) == {IDLE_WAIT_MS}
    assert len(broker.waits) <= 30

    loop = asyncio.get_running_loop()
    appended = loop.time()
    loop.call_later(0.01, broker.append)
    found = await fetcher.poll((), None, 1000)
    assert [record.value for record in found[FIRST]] == [b"value"]
    assert loop.time() - appended < 0.02
    assert not await fetcher.poll((), None, 100)
    assert broker.waits[-1] == FETCH_WAIT_MS  # something came: more may
    await fetcher.close()


@pytest.mark.looptime
async def test_a_partition_that_is_read_from_now_on_is_asked_for_soon() -> None:
    broker = Broker()
    fetcher = Fetcher(broker)
    fetcher.assign([FIRST, SECOND])
    fetcher.resume([FIRST])
    await idle_for(fetcher, 3)
    fetcher.resume([SECOND])
    before = len(broker.waits)
    await idle_for(fetcher, 0.9)
    assert broker.waits[before] == FETCH_WAIT_MS
    await fetcher.close()


async def reading(broker: Broker) -> Fetcher:
    fetcher = Fetcher(broker)
    fetcher.assign([FIRST])
    fetcher.resume([FIRST])
    await asyncio.sleep(0.01)  # virtual: its fetch waits at the broker
    return fetcher


@pytest.mark.looptime
async def test_who_follows_has_all_records_as_they_come() -> None:
    broker, found = Broker(), list[dict[Partition, list[Record]]]()
    fetcher, loop = await reading(broker), asyncio.get_running_loop()
    following = loop.create_task(fetcher.follow(found.append, 1000))
    await asyncio.sleep(0.01)
    for number in range(3):
        broker.put(batch(number))
        while len(found) == number:
            await asyncio.sleep(0)
        assert [record.offset for record in found[-1][FIRST]] == [number]
        await asyncio.sleep(0.01)
    assert not following.done()
    started = loop.time()
    await following
    assert loop.time() - started == pytest.approx(0.96, abs=0.03)
    await fetcher.close()


@pytest.mark.looptime
async def test_what_comes_while_nobody_follows_is_handed_over_next_time() -> None:
    broker, found = Broker(), list[dict[Partition, list[Record]]]()
    fetcher = await reading(broker)
    await fetcher.poll((), None, 0)
    broker.append()
    await asyncio.sleep(0.01)
    assert not found
    await fetcher.follow(found.append, 20)
    assert [record.value for record in found[0][FIRST]] == [b"value"]
    await fetcher.close()


@pytest.mark.looptime
async def test_who_follows_hears_what_cannot_be_decoded_and_may_go_on() -> None:
    broker, found = Broker(), list[dict[Partition, list[Record]]]()
    fetcher, loop = await reading(broker), asyncio.get_running_loop()
    loop.call_later(0.01, broker.put, batch()[:-1] + b"!")
    with pytest.raises(CorruptRecordException):
        await fetcher.follow(found.append, 1000)
    assert loop.time() < 0.1
    assert not found
    loop.call_later(0.01, broker.append)
    await fetcher.follow(found.append, 100)
    assert len(found) == 1
    await fetcher.close()
