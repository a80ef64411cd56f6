"""A topic of which nothing is drained, and one whose partitions go away at a bad moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from contracts.adapters.kafka import OffsetOutOfRange, Partition
from contracts.errors import TransportError
from tests.helpers import wait_until
from workers.draining.claim import Claim
from workers.draining.settings import DrainGroup
from workers.draining.topic import READ_BACK_SECONDS, Bounds, TopicDrain

PARTITION = Partition("t", 0)


class Closed:
    """A reader that was never opened, such as that of a lane that nobody asked for."""

    async def committed(self, _: Any) -> Any:
        raise TransportError("the reader is not open")


@pytest.mark.looptime
async def test_what_was_never_drained_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    reader: Any = Closed()
    drain = TopicDrain("t", reader, settings=DrainGroup(), may_take=lambda: True)
    committing = asyncio.ensure_future(drain.commit_loop())  # noqa: TID251 - cancelled below
    await asyncio.sleep(READ_BACK_SECONDS + 1)
    await drain.quiet()
    await asyncio.sleep(1)
    assert caplog.text == ""
    assert not committing.done()
    committing.cancel()


class Truncated:
    """A reader whose log was cut off behind its back; the test says how long it looks for the new bounds."""

    def __init__(self) -> None:
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self.is_cut_off = True

    async def committed(self, partitions: Iterable[Partition]) -> dict[Partition, None]:
        return dict.fromkeys(partitions)

    async def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, Bounds]:
        self.is_asked.set()
        await self.may_answer.wait()
        return dict.fromkeys(partitions, (100, 100))

    async def poll(self, *partitions: Partition, **_: int) -> dict[Partition, Any]:
        await asyncio.sleep(0)
        if self.is_cut_off:
            self.is_cut_off = False
            raise OffsetOutOfRange([PARTITION])
        return {}

    def begin(self, *_: object) -> None: ...

    def pause(self, *_: object) -> None: ...


class Plain(TopicDrain):
    """Drains as little as can be; its claims may take a while to be opened."""

    def __init__(self, reader: Any) -> None:
        super().__init__("t", reader, settings=DrainGroup(), may_take=lambda: True)
        self.is_opening, self.may_open = asyncio.Event(), asyncio.Event()
        self.may_open.set()

    async def _opened(self, starts: Mapping[Partition, Bounds]) -> list[Claim]:
        self.is_opening.set()
        await self.may_open.wait()
        return [Claim(partition, start) for partition, (start, _) in starts.items()]

    def _silence(self, claims: Iterable[Claim]) -> None: ...


@pytest.mark.parametrize("during", ["bounds", "opening"])
async def test_a_partition_that_is_given_away_while_it_is_begun_anew_is_neither_missed_nor_kept(during: str) -> None:
    reader = Truncated()
    drain = Plain(reader)
    await drain.take([0])
    begun = reader.is_asked if during == "bounds" else drain.is_opening
    going_on = reader.may_answer if during == "bounds" else drain.may_open
    begun.clear()
    going_on.clear()
    polling = asyncio.ensure_future(drain.poll_loop())  # noqa: TID251 - awaited below
    await begun.wait()
    assert await drain.give([0]) == {0}
    going_on.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert drain.partitions == frozenset()
    await drain.quiet()
    await wait_until(polling.done)
    assert polling.exception() is None
