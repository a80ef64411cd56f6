"""Direct requests whose reply partition takes nothing: tried again as often as any, and then kept.

The publisher, the intake and the responder are the real ones; what the retry topic gets goes back as a forwarder sends
it, until nothing comes any more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from contracts.adapters.kafka import Ack, AckUnknown, Outgoing, Partition, Record
from contracts.dead_letters import DeadLetter, Undertaker, parse_dead_letter
from contracts.messages import Status
from contracts.names import ModelVersion
from contracts.retries import MAX_ATTEMPTS, forward_headers
from tests.helpers import FakeClock, wait_until
from workers.draining.broker_time import BrokerTime
from workers.draining.claim import Claim
from workers.draining.publisher import Publisher
from workers.ingest.intake import Checking, Intake
from workers.ingest.responder import Responder

MODEL = ModelVersion("m", 1)
REQUESTS, REPLIES, RETRY, DEAD = "headrace.requests.m.1", "headrace.replies.me", "headrace.retry.m.1", "headrace.dead.m"
ADDRESS = b"headrace.replies.me/0/token"
NOTHING = (lambda _: None, None)
Pairs = list[tuple[str, bytes | None]]


class Brokers:
    """Acknowledge at once, but for the reply topic, which takes nothing."""

    def __init__(self) -> None:
        self.taken: dict[str, list[Outgoing]] = defaultdict(list)

    def post(self, *_: object, **__: object) -> None: ...

    async def publish_many(self, topic: str, partition: int, records: Sequence[Outgoing], **_: object) -> Ack:
        await asyncio.sleep(0)
        if topic == REPLIES:
            raise AckUnknown("no acknowledgement in time")
        self.taken[topic] += records
        return Ack(topic, partition, 0, 0)

    async def rebuild(self) -> None:
        pytest.fail("one silent partition is no reason to replace the producer")


class Fitting:
    """What checks requests that are late anyhow."""

    def check_step(self, _: object) -> None: ...


class Worker:
    def __init__(self) -> None:
        self.brokers, self.clock = Brokers(), FakeClock()
        self.publisher = Publisher(cast("Any", self.brokers), self.clock, lambda *_: None, lambda: None)
        undertaker = Undertaker("m@1", "", "lease", 1, "host")
        self.responder = Responder(self.publisher, MODEL, prefix="headrace", undertaker=undertaker, clock=self.clock)
        broker_time = BrokerTime(self.clock)
        self.intake = Intake(MODEL, cast("Checking", Fitting()), self.responder, self.clock, broker_time)
        self.claim = Claim(Partition(REQUESTS, 0), 0)

    def record(self, headers: Pairs) -> Record:
        offset = self.claim.tracker.expected
        self.claim.tracker.receive(offset)
        return Record(REQUESTS, 0, offset, self.clock.unix_ms(), 1, b"id", b"body", headers)

    async def sent(self) -> None:
        await wait_until(lambda: not self.publisher.waiting_bytes, "it is held for good")

    async def take(self, headers: Pairs) -> None:
        """Take a request whose time is over, or that is none, while others get through."""
        record = self.record(headers)
        self.clock.advance(31)
        self.publisher.publish("others", 0, (b"", ()), NOTHING, NOTHING)
        await wait_until(lambda: self.brokers.taken.pop("others", None))
        assert self.intake.take(self.claim, record, self.intake.moment()) is None

    async def answer(self, headers: Pairs) -> list[Outgoing]:
        """Take it, and return what the retry topic got for it."""
        await self.take(headers)
        await self.sent()
        copies, self.brokers.taken[RETRY] = self.brokers.taken[RETRY], []
        return copies

    async def circle(self, headers: Pairs, most: int) -> int:
        """How often it comes round."""
        for rounds in range(most):
            copies = await self.answer(headers)
            if not copies:
                return rounds
            ((_, copied, _),) = [cast("tuple[Any, Any, Any]", copy) for copy in copies]
            headers = forward_headers(copied, 30_000)
        return most

    @property
    def letters(self) -> list[DeadLetter]:
        found = [cast("tuple[Any, Any, Any]", record) for record in self.brokers.taken[DEAD]]
        return [parse_dead_letter(0, 0, headers, value) for value, headers, _ in found]


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    yield worker
    await worker.publisher.stop()


@pytest.mark.parametrize(
    "more",
    [[("ttl", b"30000")], [], [("priority", b"none such")], [("ttl", b"9" * 5000)], [("ttl", None)]],
    ids=["late", "late, by default", "headers that are none", "hostile", "null"],
)
async def test_a_request_whose_answer_nobody_takes_is_kept_after_its_last_attempt(worker: Worker, more: Pairs) -> None:
    own: Pairs = [("v", b"1.0"), ("id", b"id"), ("re", ADDRESS), *more]
    assert await worker.circle(own, 3 * MAX_ATTEMPTS) == MAX_ATTEMPTS - 1
    (letter,) = worker.letters
    assert (letter.reason, letter.body) == ("unroutable", b"body")
    assert "takes nothing" in letter.message
    tracker = worker.claim.tracker
    assert (tracker.commit_point, worker.claim.open) == (tracker.expected, 0)


async def test_one_that_was_tried_for_other_reasons_before_has_no_more_attempts_for_that(worker: Worker) -> None:
    own: Pairs = [("v", b"1.0"), ("id", b"id"), ("re", ADDRESS), ("attempt", b"%d" % MAX_ATTEMPTS)]
    assert await worker.answer(own) == []
    assert len(worker.letters) == 1


async def test_poison_is_kept_once_and_its_answer_holds_nothing(worker: Worker) -> None:
    record = worker.record([("v", b"1.0"), ("id", b"id"), ("re", ADDRESS)])
    worker.intake.bury(worker.claim, record, "it ended three workers", 3)
    await worker.sent()
    assert [letter.reason for letter in worker.letters] == [Status.POISON.value.lower()]
    assert worker.claim.tracker.commit_point == 1
    assert worker.publisher.waiting_bytes == 0


async def test_what_the_next_owner_reads_again_is_not_copied(worker: Worker) -> None:
    await worker.take([("v", b"1.0"), ("id", b"id"), ("re", ADDRESS)])
    worker.claim.is_over = True
    await worker.sent()
    assert worker.brokers.taken[RETRY] == []
    assert (worker.claim.tracker.commit_point, worker.claim.open) == (0, 0)
