"""Sending dead letters again: each request once, under its own id, at a bounded rate."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from contracts.dead_letters import DeadLetter, redrive_headers
from contracts.errors import ConfigurationError

if TYPE_CHECKING:
    from contracts.adapters.kafka import Producer
    from contracts.settings import KafkaSettings

_SAY_EVERY_SECONDS = 1.0


class Sending(NamedTuple):
    """Where a letter goes; `why_not` says why it does not."""

    letter: DeadLetter
    topic: str
    partition: int
    why_not: str = ""


class Redriver:
    """Sends letters of one model again."""

    def __init__(self, settings: KafkaSettings, producer: Producer, model: str, version: int | None) -> None:
        self._settings = settings
        self._producer = producer
        self._model = model
        self._version = version
        self._counts: dict[str, int] = {}

    async def plan(self, letters: Sequence[DeadLetter]) -> list[Sending]:
        """Where each letter would go. Raises ConfigurationError when the version asked for is not there."""
        return [await self._place(letter) for letter in letters]

    async def _place(self, letter: DeadLetter) -> Sending:
        from contracts import topics

        source, _, _ = letter.source.rpartition("/")
        topic, _, number = source.rpartition("/")
        if topics.parse_joins(self._settings.prefix, topic) is not None:
            return Sending(letter, topic, 0, "it belongs to a job that ended elsewhere: submit the job again")
        if self._version is not None:
            topic = await self._topic_of(letter, self._version)
        if not letter.request_id:
            return Sending(letter, topic, 0, "it has no readable id")
        if letter.job and topic != source.rpartition("/")[0] and self._version is not None:
            pinned = f"it is a step of job {letter.job}, whose plan has pinned the version: replay it without another"
            return Sending(letter, topic, 0, pinned)
        if letter.is_cut:
            return Sending(letter, topic, 0, "its body was too large to be kept")
        count = await self._partitions(topic)
        if not count and topics.lane_of(topic):  # it has been deleted meanwhile
            topic = topics.without_lane(topic)
            count = await self._partitions(topic)
        if not count:
            return Sending(letter, topic, 0, f"topic {topic} does not exist")
        same = topic == source.rpartition("/")[0] and number.isdecimal() and int(number) < count
        return Sending(letter, topic, int(number) if same else zlib.crc32(letter.request_id.encode()) % count)

    async def _topic_of(self, letter: DeadLetter, version: int) -> str:
        """The request topic of a version, or the lane of it that the letter came from if it has that, too."""
        from contracts import topics

        topic = topics.requests(self._settings.prefix, self._model, version)
        priority = topics.lane_of(letter.source.rpartition("/")[0].rpartition("/")[0])
        if priority is None or not await self._partitions(topic):
            return topic
        lane = topics.lane(topic, priority)
        return lane if await self._partitions(lane, is_needed=False) else topic

    async def _partitions(self, topic: str, *, is_needed: bool = True) -> int:
        from contracts.adapters.kafka import TopicMissing

        if topic not in self._counts:
            try:
                self._counts[topic] = await self._producer.partitions(topic)
            except TopicMissing:
                if self._version is not None and is_needed:
                    msg = f"{self._model}@{self._version} was never deployed: `headrace models {self._model}`"
                    raise ConfigurationError(msg) from None
                self._counts[topic] = 0
        return self._counts[topic]

    async def send(
        self, sendings: Sequence[Sending], *, rate: float | None, ttl_ms: int | None, say: Callable[[str], None]
    ) -> int:
        """Send them, each acknowledged before it counts; at most `rate` a second. Returns how many were sent."""
        loop = asyncio.get_running_loop()
        started = said = loop.time()
        for number, (letter, topic, partition, _) in enumerate(sendings):
            if rate is not None:
                await asyncio.sleep(max(0.0, started + number / rate - loop.time()))
            headers = redrive_headers(letter, ttl_ms=ttl_ms, version=self._version)
            await self._producer.send_and_wait(topic, partition, letter.body, headers, letter.request_id.encode())
            if loop.time() - said > _SAY_EVERY_SECONDS:
                said = loop.time()
                say(f"{number + 1} of {len(sendings)} sent again …")
        return len(sendings)
