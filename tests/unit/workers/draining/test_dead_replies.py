"""One reply partition takes nothing: whatever kind of answer it is meant for, the others get theirs.

The publisher is the real one, over brokers of which one partition falls silent.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from contracts.adapters.kafka import Ack
from contracts.dead_letters import Undertaker
from contracts.emissions import Job
from contracts.messages import ReplyAddress
from contracts.names import ModelVersion
from contracts.plans import Answer, Plan
from contracts.tensors import Tensor
from tests.deliveries import CLAIM
from tests.helpers import FakeClock, wait_until
from workers.draining import publisher as module
from workers.draining.courier import Courier
from workers.draining.publisher import BUFFER_BYTES, Publisher
from workers.ingest.delivery import Origin, Place
from workers.ingest.responder import Responder

MODEL = ModelVersion("m", 1)
PLAN = Plan(pipeline=ModelVersion("fan", 1), nodes=(), partitions=1)
REPLIES = "headrace.replies.pipes"
MIB = Tensor.from_numpy("y", np.zeros((1, 240 * 1024), np.float32))
"""As much as fits a response."""
SILENT, HEARD = 0, 1


class Brokers:
    """Acknowledge at once, but for a partition that has fallen silent: that one never does."""

    def __init__(self) -> None:
        self.acked: dict[tuple[str, int], int] = defaultdict(int)
        self.is_silent = True

    def post(self, *_: object, **__: object) -> None: ...

    async def publish_many(self, topic: str, partition: int, records: Sequence[Any], **_: object) -> Ack:
        if self.is_silent and (topic, partition) == (REPLIES, SILENT):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        self.acked[topic, partition] += len(records)
        return Ack(topic, partition, 0, 0)

    async def rebuild(self) -> None:
        pytest.fail("one silent partition is no reason to replace the producer")


class Worker:
    """What a worker answers with."""

    def __init__(self) -> None:
        self.brokers, self.clock = Brokers(), FakeClock()
        self.publisher = Publisher(cast("Any", self.brokers), self.clock, lambda *_: None, lambda: None)
        self.courier = Courier(self.publisher, self.clock, prefix="headrace", partition_of=lambda _: None)
        undertaker = Undertaker("m@1", "", "lease", 1, "host")
        self.responder = Responder(self.publisher, MODEL, prefix="headrace", undertaker=undertaker, clock=self.clock)
        self.settled = 0
        self.kept: list[str] = []

    def ends_a_job(self, partition: int) -> None:
        """As the worker of a job's last step does, or of a fused pipeline."""

        def keep(message: str, then: Callable[[object], None]) -> None:
            self.kept.append(message)
            then(None)

        job = Job("job-1", PLAN, ReplyAddress(REPLIES, partition, "me"))
        self.courier.send(job, [Answer((MIB,))], 0.0, self._settle, unroutable=keep)

    def streams(self, partition: int) -> None:
        """A part, as the worker of a streaming model sends it."""
        origin = Origin(CLAIM, cast("Any", None), "id", ReplyAddress(REPLIES, partition, "me"))
        assert self.responder.send_part(origin, MODEL, (MIB,), Place(0, "w.1"))

    def _settle(self, _: object) -> None:
        self.settled += 1


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    yield worker
    await worker.publisher.stop()


@pytest.mark.parametrize("how", [Worker.ends_a_job, Worker.streams], ids=["answers of jobs", "parts of streams"])
async def test_what_a_silent_partition_does_not_take_leaves_room_for_the_others(
    how: Callable[[Worker, int], None], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.02)
    how(worker, SILENT)
    await asyncio.sleep(0)  # the first is being sent, the others wait
    for _ in range(BUFFER_BYTES // len(MIB.data) + 1):
        how(worker, SILENT)
    assert worker.publisher.waiting_bytes >= BUFFER_BYTES
    worker.clock.advance(3)
    await wait_until(lambda: worker.publisher.has_room, "the silent partition has filled the buffer for good")
    assert worker.publisher.waiting_bytes < BUFFER_BYTES // 2
    for _ in range(200):
        how(worker, SILENT)
    assert worker.publisher.has_room
    how(worker, HEARD)
    await wait_until(lambda: worker.brokers.acked[REPLIES, HEARD] == 1, "the others wait for the silent one")


async def test_answers_of_jobs_that_nobody_takes_are_kept_and_counted_as_done(worker: Worker, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.02)
    worker.ends_a_job(SILENT)
    await asyncio.sleep(0)
    for _ in range(20):
        worker.ends_a_job(SILENT)
    worker.clock.advance(3)
    await wait_until(lambda: len(worker.kept) == 20, "they were not kept")
    assert worker.settled == 20
    assert all(f"{REPLIES} is no reply topic" in message for message in worker.kept)
