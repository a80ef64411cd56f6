"""A reader that stands still without saying so, on a real log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from contracts.adapters.kafka import Admin, Partition, Producer, Reader, Record
from contracts.service import Loops
from contracts.settings import KafkaSettings
from tests.helpers import wait_until
from workers.draining import metrics
from workers.draining.claim import Claim
from workers.draining.settings import DrainGroup
from workers.draining.topic import Bounds, TopicDrain


class Collecting(TopicDrain):
    """Answers every record by noting its value."""

    def __init__(self, topic: str, reader: Reader) -> None:
        settings = DrainGroup(stuck_seconds=0.5, commit_interval_ms=50)
        super().__init__(topic, reader, settings=settings, may_take=lambda: True)
        self.values: list[bytes | None] = []

    async def _opened(self, starts: Mapping[Partition, Bounds]) -> list[Claim]:
        return [Claim(partition, start) for partition, (start, _) in starts.items()]

    async def _take_records(self, claim: Claim, records: Sequence[Record]) -> None:
        for record in records:
            claim.tracker.receive(record.offset)
            claim.tracker.done(record.offset)
            self.values.append(record.value)

    def _silence(self, claims: Iterable[Claim]) -> None:
        """Nothing is ever in hand."""


async def test_a_reader_that_stands_still_although_the_log_has_more_is_made_anew(log_settings: KafkaSettings) -> None:
    topic = f"{log_settings.prefix}.requests.stuck.1"
    admin, producer = Admin(log_settings), Producer(log_settings)
    reader = Reader(log_settings, f"{log_settings.prefix}.stuck")
    await admin.open()
    await admin.ensure_topic(topic, 2)
    await admin.close()
    await producer.open()
    await reader.open()
    drain, loops = Collecting(topic, reader), Loops("stuck")
    drain.assign(2)
    await drain.take([0, 1])
    loops.spawn("poll", drain.poll_loop())
    loops.spawn("commit", drain.commit_loop())
    before = metrics.STUCK._value.get()
    try:
        await producer.send_and_wait(topic, 0, b"one", [])
        await wait_until(lambda: drain.values == [b"one"])
        stuck = reader._reading
        stuck.pause([Partition(topic, 0)])  # behind the drain's back: as if its fetches had been forgotten
        for partition, value in ((0, b"two"), (1, b"three"), (0, b"four")):
            await producer.send_and_wait(topic, partition, value, [])
        await wait_until(lambda: sorted(map(bytes, filter(None, drain.values))) == [b"four", b"one", b"three", b"two"])
        assert reader._reading is not stuck
        assert metrics.STUCK._value.get() == before + 1
        assert await drain.give([0, 1]) == {0, 1}
        committed = await reader.committed([Partition(topic, 0), Partition(topic, 1)])
        assert set(committed.values()) == {3, 1}
    finally:
        await drain.quiet()
        await loops.join("poll", 2)
        await loops.stop()
        await reader.close()
        await producer.close()
