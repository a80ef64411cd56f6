"""The publisher over a producer in the test's hand: destinations that take nothing, and those beside them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from contracts.adapters.kafka import Ack, AckUnknown
from contracts.errors import TransportError
from tests.helpers import FakeClock, wait_until
from workers.draining import publisher as module
from workers.draining.publisher import BUFFER_BYTES, DESTINATION_BYTES, Publisher

MIB = 1024 * 1024


class HeldProducer:
    """Acknowledges at once, but for partitions that are held: those fail when the test says that their time is over."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.sent: dict[int, list[bytes]] = defaultdict(list)
        self.over: dict[int, asyncio.Event] = defaultdict(asyncio.Event)

    def post(self, _: str, partition: int, records: Sequence[Any], *, is_lone: bool) -> asyncio.Future[Ack] | None:
        return None

    async def publish_many(
        self, topic: str, partition: int, records: Sequence[Any], *, timeout_seconds: float, is_lone: bool
    ) -> Ack | None:
        if partition in self.held:
            await self.over[partition].wait()
            self.over[partition].clear()
            raise AckUnknown("no acknowledgement in time")
        self.sent[partition] += [record[0] for record in records]
        return Ack(topic, partition, 0, 0)

    async def rebuild(self) -> None:
        pytest.fail("one silent partition is no reason to replace the producer")


class Bench:
    def __init__(self) -> None:
        self.producer, self.clock = HeldProducer(), FakeClock()
        self.progress = 0
        self.publisher = Publisher(self.producer, self.clock, lambda *_: None, self._count)  # type: ignore[arg-type]
        self.settled: list[bytes] = []
        self.diverted: list[bytes] = []

    def _count(self) -> None:
        self.progress += 1

    def publish(self, partition: int, body: bytes, *, may_divert: bool = True) -> None:
        lost = (lambda _: pytest.fail("it was lost"), None)
        diverted = (self.diverted.append, body) if may_divert else None
        self.publisher.publish("replies", partition, (body, []), (self.settled.append, body), lost, diverted)

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.publisher.stop()


async def test_a_stalled_destination_keeps_a_quarter_of_the_buffer_and_the_others_go_on(bench: Bench) -> None:
    bench.producer.held.add(0)
    for _ in range(17):
        bench.publish(0, bytes(MIB))
    await bench.turn()
    assert not bench.diverted  # a moment's delay is no reason
    bench.clock.advance(2)
    for _ in range(200):
        bench.publish(0, bytes(MIB))
    assert len(bench.diverted) == 200
    assert bench.publisher.waiting_bytes <= DESTINATION_BYTES + MIB < BUFFER_BYTES
    assert bench.publisher.has_room
    bench.publish(1, b"other")
    await wait_until(lambda: b"other" in bench.settled)


async def test_a_busy_destination_may_have_the_whole_buffer(bench: Bench) -> None:
    for _ in range(40):
        bench.publish(0, bytes(MIB))
    assert bench.publisher.waiting_bytes == 40 * MIB
    await wait_until(lambda: len(bench.settled) == 40)
    assert (bench.diverted, bench.publisher.waiting_bytes) == ([], 0)


async def test_a_buffer_filled_within_a_moment_is_relieved_by_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.02)
    bench.producer.held.add(0)
    bench.publish(0, b"first")
    await bench.turn()
    for _ in range(64):
        bench.publish(0, bytes(MIB))
    assert bench.publisher.waiting_bytes > BUFFER_BYTES
    bench.clock.advance(1)
    await wait_until(lambda: len(bench.diverted) == 64)
    assert bench.publisher.has_room
    assert bench.progress


async def test_a_silent_destination_is_given_up_and_tried_with_one_record_at_a_time(bench: Bench) -> None:
    bench.producer.held.add(0)
    bench.publish(0, b"1")
    await bench.turn()
    bench.publish(0, b"2")
    bench.clock.advance(30)
    bench.publish(1, b"other")  # somebody gets through
    await wait_until(lambda: bench.settled)
    bench.producer.over[0].set()
    await wait_until(lambda: bench.diverted == [b"1", b"2"])
    bench.publish(0, b"3")
    assert bench.diverted == [b"1", b"2", b"3"]
    bench.clock.advance(31)
    bench.publish(0, b"4")
    bench.publish(0, b"5")
    assert bench.diverted == [b"1", b"2", b"3", b"5"]
    assert bench.publisher.waiting_bytes == 1
    bench.producer.held.clear()
    await wait_until(lambda: b"4" in bench.settled)
    bench.publish(0, b"6")
    await wait_until(lambda: b"6" in bench.settled)
    assert bench.publisher.waiting_bytes == 0


async def test_what_cannot_be_diverted_waits_and_is_sent_again(bench: Bench) -> None:
    bench.producer.held.add(0)
    bench.publish(0, b"letter", may_divert=False)
    await bench.turn()
    bench.publish(1, b"other")
    await wait_until(lambda: bench.settled)
    bench.producer.held.clear()
    bench.producer.over[0].set()
    await wait_until(lambda: b"letter" in bench.settled)
    assert bench.diverted == []


async def test_a_burst_of_which_all_is_being_sent_is_no_reason_to_keep_the_others_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.02)
    bench.producer.held.add(0)
    for _ in range(64):
        bench.publish(0, bytes(MIB))  # before the first turn: one send has them all
    await bench.turn()
    assert not bench.publisher.has_room
    bench.clock.advance(1)
    await wait_until(lambda: bench.publisher.has_room, "what is being sent fills the buffer", timeout=2)
    bench.publish(1, b"other")
    await wait_until(lambda: b"other" in bench.settled)


async def test_what_goes_wrong_behind_one_record_concerns_no_other(bench: Bench) -> None:
    def fails(_: object) -> None:
        message = "nobody has thought of this"
        raise RuntimeError(message)

    bench.publisher.publish("replies", 0, (b"bad", []), (fails, None), (fails, None), (fails, None))
    bench.publish(0, b"beside it")
    await asyncio.sleep(0)
    bench.publish(0, b"behind it")
    await wait_until(lambda: len(bench.settled) == 2, "the others went with it")
    assert bench.publisher.waiting_bytes == 0


async def test_what_goes_wrong_where_one_record_is_diverted_concerns_no_other(bench: Bench) -> None:
    def fails(_: object) -> None:
        message = "nobody has thought of this"
        raise RuntimeError(message)

    bench.producer.held.add(0)
    bench.publisher.publish("replies", 0, (b"bad", []), (fails, None), (fails, None), (fails, None))
    bench.publish(0, b"beside it")
    await bench.turn()
    bench.publish(0, b"behind it")
    bench.clock.advance(30)
    bench.publish(1, b"other")
    await wait_until(lambda: bench.settled == [b"other"])
    bench.producer.over[0].set()
    await wait_until(lambda: len(bench.diverted) == 2, "the others went with it")
    assert bench.publisher.waiting_bytes == 0


class PostingProducer(HeldProducer):
    """Sends at once where it can, and acknowledges when the test does."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[tuple[int, list[bytes], bool, asyncio.Future[Ack]]] = []
        self.can_post = True

    def post(self, _: str, partition: int, records: Sequence[Any], *, is_lone: bool) -> asyncio.Future[Ack]:
        if not self.can_post:
            raise RuntimeError("the batch cannot be built")
        ack: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self.posted.append((partition, [record[0] for record in records], is_lone, ack))
        return ack

    async def settle(self, ack: asyncio.Future[Ack], _: str, *, timeout_seconds: float) -> Ack:
        return await ack

    async def rebuild(self) -> None:
        """A new producer."""


@pytest.fixture
async def posting() -> AsyncIterator[tuple[Bench, PostingProducer]]:
    bench, producer = Bench(), PostingProducer()
    bench.publisher._producer = producer  # type: ignore[assignment]
    yield bench, producer
    await bench.publisher.stop()


async def test_what_is_flushed_is_sent_in_the_same_turn_and_settled_by_its_acknowledgement(posting: Any) -> None:
    bench, producer = posting
    bench.publish(0, b"first")
    bench.publish(0, b"second")
    bench.publisher.flush()
    ((partition, bodies, is_lone, ack),) = producer.posted
    assert (partition, bodies, is_lone) == (0, [b"first", b"second"], True)
    bench.publish(0, b"third")  # while the others are on their way
    bench.publisher.flush()
    await bench.turn()
    assert (len(producer.posted), bench.settled) == (1, [])
    ack.set_result(Ack("replies", 0, 0, 0))
    await wait_until(lambda: bench.settled == [b"first", b"second", b"third"])
    assert (producer.sent[0], bench.publisher.waiting_bytes) == ([b"third"], 0)


async def test_what_nobody_flushes_is_sent_when_the_turn_ends_and_drained_at_once(posting: Any) -> None:
    bench, producer = posting
    bench.publish(0, b"a")
    bench.publish(1, b"b")
    await asyncio.sleep(0)
    assert [(partition, is_lone) for partition, _, is_lone, _ in producer.posted] == [(0, False), (1, False)]
    bench.publish(2, b"c")
    draining = asyncio.ensure_future(bench.publisher.drain(5.0))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    assert len(producer.posted) == 3
    for *_, ack in producer.posted:
        ack.set_result(Ack("replies", 0, 0, 0))
    assert await draining
    assert sorted(bench.settled) == [b"a", b"b", b"c"]


async def test_what_was_sent_at_once_in_vain_is_published_again(posting: Any) -> None:
    bench, producer = posting
    bench.publish(0, b"first")
    bench.publisher.flush()
    producer.posted[0][3].set_exception(TransportError("the connection broke"))
    await wait_until(lambda: bench.settled == [b"first"])
    assert producer.sent[0] == [b"first"]


async def test_what_cannot_be_sent_at_once_is_published_as_ever(posting: Any) -> None:
    bench, producer = posting
    producer.can_post = False
    bench.publish(0, b"first")
    bench.publisher.flush()
    await wait_until(lambda: bench.settled == [b"first"])


async def test_what_is_due_when_the_publisher_stops_is_not_sent(posting: Any) -> None:
    bench, producer = posting
    bench.publish(0, b"first")
    await bench.publisher.stop()
    await bench.turn()
    assert not producer.posted
