from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from typing import cast

import pytest

from contracts.adapters.kafka import Ack, Outgoing, Producer
from contracts.errors import TransportError
from producer.lanes import Lanes
from producer.pending import Outgoing as Request
from producer.pending import Pending, Waiter


def make_waiter(value: bytes, partition: int = 0) -> Waiter:
    future = asyncio.get_running_loop().create_future()
    return Waiter(str(value), future, 0.0, 30.0, "m", 1, Request("t", partition, value, []))


class Broker:
    """Takes batches as a producer does, and acknowledges them when told to."""

    def __init__(self, *, is_busy: bool) -> None:
        """One that is busy takes nothing at once."""
        self._is_busy = is_busy
        self.batches: list[tuple[int, list[bytes | None]]] = []
        self.error: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def post(
        self, topic: str, partition: int, records: Sequence[Outgoing], *, is_lone: bool
    ) -> asyncio.Future[Ack] | None:
        if self._is_busy:
            return None
        self.batches.append((partition, [record[0] for record in records]))
        return asyncio.get_running_loop().create_future()

    async def settle(self, ack: asyncio.Future[Ack], topic: str, *, timeout_seconds: float | None) -> None:
        assert not ack.done()
        await self._answer()

    async def publish_many(
        self, topic: str, partition: int, records: Sequence[Outgoing], *, timeout_seconds: float | None, is_lone: bool
    ) -> None:
        self.batches.append((partition, [record[0] for record in records]))
        await self._answer()

    async def _answer(self) -> None:
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture(params=[False, True], ids=["at once", "in its turn"])
async def broker(request: pytest.FixtureRequest) -> Broker:
    return Broker(is_busy=request.param)


@pytest.fixture
async def failures() -> list[str]:
    return []


@pytest.fixture
async def lanes(broker: Broker, failures: list[str]) -> Lanes:
    return Lanes(cast("Producer", broker), lambda: failures.append("failed"))


async def test_what_one_turn_sends_to_a_partition_is_one_batch(lanes: Lanes, broker: Broker) -> None:
    acks = [lanes.put(make_waiter(b"%d" % number, number % 2)) for number in range(6)]
    await asyncio.gather(*acks)
    assert broker.batches == [(0, [b"0", b"2", b"4"]), (1, [b"1", b"3", b"5"])]


async def test_what_arrives_while_a_batch_is_under_way_forms_the_next_one_in_order(
    lanes: Lanes, broker: Broker
) -> None:
    broker.may_answer.clear()
    first = lanes.put(make_waiter(b"a"))
    await asyncio.sleep(0)
    second, third = lanes.put(make_waiter(b"b")), lanes.put(make_waiter(b"c"))
    assert second is third
    assert second is not first
    broker.may_answer.set()
    await asyncio.gather(first, second)
    assert broker.batches == [(0, [b"a"]), (0, [b"b", b"c"])]


async def test_a_refusal_reaches_all_of_its_batch_and_nobody_else(
    lanes: Lanes, broker: Broker, failures: list[str]
) -> None:
    broker.error = TransportError("out of order")
    refused = lanes.put(make_waiter(b"a"))
    assert lanes.put(make_waiter(b"b")) is refused
    with pytest.raises(TransportError, match="out of order"):
        await refused
    assert failures == ["failed"]
    broker.error = None
    await lanes.put(make_waiter(b"c"))
    assert broker.batches == [(0, [b"a", b"b"]), (0, [b"c"])]


async def test_whatever_goes_wrong_is_an_error_of_ours(lanes: Lanes, broker: Broker) -> None:
    broker.error = RuntimeError("a bug")
    with pytest.raises(TransportError, match="a bug"):
        await lanes.put(make_waiter(b"a"))


async def test_closing_sends_what_is_queued(lanes: Lanes, broker: Broker) -> None:
    ack = lanes.put(make_waiter(b"a"))
    await lanes.close()
    assert ack.done()
    assert broker.batches == [(0, [b"a"])]


async def test_closing_gives_up_on_a_broker_that_does_not_answer(
    lanes: Lanes, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.lanes._DRAIN_SECONDS", 0.01)
    broker.may_answer.clear()
    ack = lanes.put(make_waiter(b"a"))
    await lanes.close()
    assert not ack.done()


async def test_what_nobody_waits_for_any_more_is_not_sent(lanes: Lanes, broker: Broker) -> None:
    broker.may_answer.clear()
    pending = Pending(limit=10, limit_bytes=1000)
    answered, given_up, gone, alive = waiters = [make_waiter(value) for value in (b"a", b"b", b"c", b"d")]
    first = lanes.put(make_waiter(b"first"))
    await asyncio.sleep(0)
    for waiter in waiters:
        pending.add(waiter)
        waiter.ack = lanes.put(waiter)
    pending.fail(answered.id, TransportError("no"))
    pending.give_up(given_up.id)
    gone.future.set_result(None)
    broker.may_answer.set()
    await asyncio.gather(first, alive.ack)
    assert broker.batches == [(0, [b"first"]), (0, [b"d"])]


async def test_the_acknowledgement_of_what_was_dropped_altogether_is_cancelled(lanes: Lanes, broker: Broker) -> None:
    waiter = make_waiter(b"a")
    waiter.future.set_result(None)
    ack = lanes.put(waiter)
    await asyncio.wait([ack])
    assert ack.cancelled()
    assert broker.batches == []


async def test_what_ends_while_an_earlier_batch_is_under_way_is_dropped_from_the_later_ones(
    lanes: Lanes, broker: Broker
) -> None:
    broker.may_answer.clear()
    waiters = [make_waiter(letter * 200_000) for letter in (b"a", b"b", b"c")]
    ack = [lanes.put(waiter) for waiter in waiters][-1]
    await asyncio.sleep(0)
    waiters[1].future.set_result(None)
    broker.may_answer.set()
    await ack
    assert [value[:1] for _, values in broker.batches for value in values if value] == [b"a", b"c"]


async def test_a_broker_that_stays_away_does_not_fill_the_memory(lanes: Lanes, broker: Broker) -> None:
    broker.may_answer.clear()
    _ = lanes.put(make_waiter(b"first"))
    await asyncio.sleep(0)
    kept = weakref.WeakSet[asyncio.Future[None]]()

    def come_and_go() -> None:
        waiter = make_waiter(bytes(10_000))
        kept.add(cast("asyncio.Future[None]", waiter.future))
        _ = lanes.put(waiter)
        waiter.future.set_result(None)

    for _ in range(500):
        come_and_go()
    assert len(kept) < 50
    broker.may_answer.set()
    await lanes.close()
    assert broker.batches == [(0, [b"first"])]


async def test_what_a_producer_cannot_even_begin_with_reaches_who_waits(
    lanes: Lanes, broker: Broker, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(*_: object, **__: object) -> None:
        raise RuntimeError("no such header")

    async def settle(ack: asyncio.Future[Ack], *_: object, **__: object) -> None:
        await ack

    monkeypatch.setattr(broker, "post", post)
    monkeypatch.setattr(broker, "settle", settle)
    with pytest.raises(TransportError, match="no such header"):
        await lanes.put(make_waiter(b"a"))
    assert failures == ["failed"]


async def test_what_comes_in_the_turn_of_the_closing_waits_for_what_is_being_sent(lanes: Lanes, broker: Broker) -> None:
    broker.may_answer.clear()
    acks = [lanes.put(make_waiter(b"a"))]
    closing = lanes.close()
    closing.send(None)  # its first step, before the lane's own turn
    acks.append(lanes.put(make_waiter(b"b")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert broker.batches == [(0, [b"a"])]
    broker.may_answer.set()
    await asyncio.gather(*acks)
    assert broker.batches == [(0, [b"a"]), (0, [b"b"])]
    assert not lanes._lanes
    closing.close()
