"""Retries that are due, of which one partition's cannot be sent back: the others are, once each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from contracts.adapters.kafka import Ack, AckUnknown, Outgoing, Partition, Record
from contracts.retries import retry_headers
from tests.helpers import FakeClock, wait_until
from workers.draining.broker_time import BrokerTime
from workers.ingest import forwarder as module
from workers.ingest.forwarder import Desk, Forwarder

RETRY, REQUESTS = "headrace.retry.m.1", "headrace.requests.m.1"


class Kafka:
    """A retry topic with one delay, and request partitions of which some are silent; reader and producer at once."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.log: list[Record] = []
        self.silent: set[int] = set()
        self.got: dict[int, Counter[bytes]] = {}
        self.tries = self.opened = 0
        self.at: int | None = None

    def put(self, name: bytes, home: int) -> None:
        """A request of this partition waits for another attempt."""
        headers = retry_headers(
            [("id", name)], attempt=1, left_ms=90_000, reason="memory", message="", source=f"{REQUESTS}/{home}/7",
            first_ms=1,
        )  # fmt: skip
        self.log.append(Record(RETRY, 0, len(self.log), self.clock.unix_ms(), 1, name, b"body", headers))

    async def partitions(self, _: str) -> int:
        return 1

    async def publish_many(self, _: str, partition: int, records: Sequence[Outgoing], **__: object) -> Ack:
        await asyncio.sleep(0)
        if partition in self.silent:
            self.tries += 1
            raise AckUnknown("no acknowledgement in time")
        self.got.setdefault(partition, Counter()).update(cast("Any", record)[2] for record in records)
        return Ack(REQUESTS, partition, 0, 0)

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None: ...

    def assign(self, _: Sequence[Partition]) -> None: ...

    def begin(self, _: Partition, offset: int) -> None:
        self._position = offset

    def pause(self, *_: Partition) -> None: ...

    def resume(self, *_: Partition) -> None: ...

    async def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        return dict.fromkeys(partitions, (0, len(self.log)))

    async def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        return dict.fromkeys(partitions, self.at)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        (self.at,) = offsets.values()

    async def poll(self, *, timeout_ms: int) -> dict[Partition, list[Record]]:
        await asyncio.sleep(timeout_ms / 1e6)
        found, self._position = self.log[self._position :], len(self.log)
        return {Partition(RETRY, 0): found} if found else {}

    @asynccontextmanager
    async def forwarding(self) -> AsyncIterator[Forwarder]:
        here = cast("Any", self)
        desk = Desk(RETRY, REQUESTS, (5.0,), lambda: here, here, BrokerTime(self.clock), lambda: True)
        forwarder = Forwarder(desk)
        task = asyncio.get_running_loop().create_task(forwarder.loop(), name="forwarder")
        forwarder.take()
        try:
            yield forwarder
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_RETRY_SECONDS", "_COMMIT_SECONDS", "_REST_SECONDS"):
        monkeypatch.setattr(module, name, 0.01, raising=False)


@pytest.mark.parametrize("silent_first", [True, False])
async def test_one_silent_partition_neither_holds_up_nor_repeats_the_retries_of_others(silent_first: bool) -> None:  # noqa: FBT001
    kafka = Kafka()
    kafka.silent.add(0)
    for home in (0, 1) if silent_first else (1, 0):
        kafka.put(b"for %d" % home, home)
    async with kafka.forwarding():
        await wait_until(lambda: kafka.opened)
        kafka.clock.advance(6)
        await wait_until(lambda: kafka.tries >= 4, "it is not tried again")
        assert kafka.got == {1: {b"for 1": 1}}
        kafka.put(b"later", 2)
        kafka.clock.advance(6)
        await wait_until(lambda: 2 in kafka.got, "what is due later waits for the silent one")
        kafka.silent.clear()
        await wait_until(lambda: kafka.at == 3)
    assert kafka.got == {number: {name: 1} for number, name in enumerate((b"for 0", b"for 1", b"later"))}


async def test_what_is_not_acknowledged_is_not_committed_and_the_next_owner_sends_it() -> None:
    kafka = Kafka()
    kafka.silent.add(1)
    for home in (0, 1, 2):
        kafka.put(b"for %d" % home, home)
    async with kafka.forwarding() as forwarder:
        await wait_until(lambda: kafka.opened)
        kafka.clock.advance(6)
        await wait_until(lambda: kafka.tries > 1 and 2 in kafka.got)
        await forwarder.give()
    assert kafka.at == 1
    kafka.silent.clear()
    async with kafka.forwarding():
        await wait_until(lambda: kafka.at == 3)
    assert set(kafka.got) == {0, 1, 2}
    assert kafka.got[0] == {b"for 0": 1}
