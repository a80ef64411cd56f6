from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from contracts.adapters.kafka import Ack, Outgoing, Producer
from contracts.errors import TransportError
from producer.lanes import Lanes


class Broker:
    """Takes batches as a producer does, and acknowledges them when told to."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[bytes | None]]] = []
        self.error: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def publish_many(
        self, topic: str, partition: int, records: Sequence[Outgoing], *, timeout_seconds: float | None
    ) -> Ack | None:
        self.batches.append((partition, [record[0] for record in records]))
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return None


@pytest.fixture
async def broker() -> Broker:
    return Broker()


@pytest.fixture
async def failures() -> list[str]:
    return []


@pytest.fixture
async def lanes(broker: Broker, failures: list[str]) -> Lanes:
    return Lanes(cast("Producer", broker), lambda: failures.append("failed"))


async def test_what_one_turn_sends_to_a_partition_is_one_batch(lanes: Lanes, broker: Broker) -> None:
    acks = [lanes.put("t", number % 2, b"%d" % number, []) for number in range(6)]
    await asyncio.gather(*acks)
    assert broker.batches == [(0, [b"0", b"2", b"4"]), (1, [b"1", b"3", b"5"])]


async def test_what_arrives_while_a_batch_is_under_way_forms_the_next_one_in_order(
    lanes: Lanes, broker: Broker
) -> None:
    broker.may_answer.clear()
    first = lanes.put("t", 0, b"a", [])
    await asyncio.sleep(0)
    second, third = lanes.put("t", 0, b"b", []), lanes.put("t", 0, b"c", [])
    assert second is third
    assert second is not first
    broker.may_answer.set()
    await asyncio.gather(first, second)
    assert broker.batches == [(0, [b"a"]), (0, [b"b", b"c"])]


async def test_a_refusal_reaches_all_of_its_batch_and_nobody_else(
    lanes: Lanes, broker: Broker, failures: list[str]
) -> None:
    broker.error = TransportError("out of order")
    refused = lanes.put("t", 0, b"a", [])
    assert lanes.put("t", 0, b"b", []) is refused
    with pytest.raises(TransportError, match="out of order"):
        await refused
    assert failures == ["failed"]
    broker.error = None
    await lanes.put("t", 0, b"c", [])
    assert broker.batches == [(0, [b"a", b"b"]), (0, [b"c"])]


async def test_whatever_goes_wrong_is_an_error_of_ours(lanes: Lanes, broker: Broker) -> None:
    broker.error = RuntimeError("a bug")
    with pytest.raises(TransportError, match="a bug"):
        await lanes.put("t", 0, b"a", [])


async def test_closing_sends_what_is_queued(lanes: Lanes, broker: Broker) -> None:
    ack = lanes.put("t", 0, b"a", [])
    await lanes.close()
    assert ack.done()
    assert broker.batches == [(0, [b"a"])]


async def test_closing_gives_up_on_a_broker_that_does_not_answer(
    lanes: Lanes, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.lanes._DRAIN_SECONDS", 0.01)
    broker.may_answer.clear()
    ack = lanes.put("t", 0, b"a", [])
    await lanes.close()
    assert not ack.done()
