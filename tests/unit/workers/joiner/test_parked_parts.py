"""Parts whose plan is not at hand yet, or never will be: their jobs are answered once, whatever is read meanwhile.

The joiner's drain, its courier and its publisher are the real ones, over a log in memory; the plans come when the test
lets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np

from contracts.adapters.kafka import Ack, Outgoing, Partition, Record
from contracts.codec import decode_response
from contracts.dead_letters import Undertaker
from contracts.messages import Hop, ReplyAddress, RequestHeaders, Status
from contracts.names import ModelVersion
from contracts.parts import PartBody, PartHeaders, PartKind, encode_part, encode_part_headers
from contracts.plans import Plan
from contracts.tensors import Tensor
from tests.helpers import FakeClock, wait_until
from tests.pipeline_kit import compiled
from workers.draining.broker_time import BrokerTime
from workers.draining.courier import Courier
from workers.draining.graves import Graves
from workers.draining.lookups import Lookups
from workers.draining.publisher import Publisher
from workers.joiner.join import Patience
from workers.joiner.parts import Parts
from workers.joiner.settings import JoinerGroup
from workers.joiner.tools import Tools

JOINS, REPLIES = "headrace.joins.two.1", "headrace.replies.me"
PLAN = compiled(
    {
        "name": "two", "version": 1, "outputs": {"y": "both.y"},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "steps": {
            "a": {"model": "m@1", "inputs": {"x": "input.x"}},
            "b": {"model": "n@1", "inputs": {"x": "input.x"}},
            "both": {"reduce": "mean", "inputs": {"y": ["a.y", "b.y"]}},
        },
    }
)  # fmt: skip
TTL_MS = 600_000
PATIENCE = Patience()


class World:
    """The log of one joins partition, and what callers got; producer and reader at once."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.plans = SlowPlans()
        self.log: list[Record] = []
        self.answers: list[tuple[str, Status]] = []
        self.at: int | None = None
        """What is committed."""

    def append(self, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> None:
        self.log.append(Record(JOINS, 0, len(self.log), self.clock.unix_ms(), 1, None, value, headers))

    def part(self, job: str, source: str, *, carried: int = 0) -> None:
        hop = Hop(job, PLAN.digest, "two@1", "both")
        request = RequestHeaders(f"{job}.{source}", ReplyAddress(REPLIES, 0, "me"), TTL_MS, hop=hop)
        value = Tensor.from_numpy(f"{source}.y", np.ones((1, 2), np.float32))
        body = PartBody((value, Tensor.from_numpy("input.x", np.ones(carried, np.float32))))
        self.append(encode_part(body), encode_part_headers(PartHeaders(request, hop, PartKind.VALUE, source)))

    def post(self, *_: object, **__: object) -> None: ...

    async def publish_many(self, topic: str, partition: int, records: Sequence[Outgoing], **__: object) -> Ack:
        await asyncio.sleep(0)
        for value, headers, *_ in records:
            if topic == JOINS:
                self.append(value, headers)
            elif topic == REPLIES:
                response, _ = decode_response(headers, value)
                self.answers.append((response.id, response.status))
        return Ack(topic, partition, 0, 0)

    def begin(self, _: Partition, offset: int) -> None:
        self._position = offset

    def pause(self, *_: Partition) -> None: ...

    async def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        return dict.fromkeys(partitions, (0, len(self.log)))

    async def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        return dict.fromkeys(partitions, self.at)

    async def commit(self, offsets: Mapping[Partition, int], **_: object) -> None:
        (self.at,) = offsets.values()

    async def poll(self, *_: Partition, max_records: int, timeout_ms: int) -> dict[Partition, list[Record]]:
        await asyncio.sleep(timeout_ms / 1e6)
        found = self.log[self._position : self._position + max_records]
        self._position += len(found)
        return {Partition(JOINS, 0): found} if found else {}

    @asynccontextmanager
    async def joiner(self, **settings: int) -> AsyncIterator[Parts]:
        """One that drains the partition, and dies."""
        publisher = Publisher(cast("Any", self), self.clock, lambda *_: None, lambda: None)
        undertaker = Undertaker("two@1", "", "lease", 1, "host")
        tools = Tools(
            cast("Any", self.plans),
            Courier(publisher, self.clock, prefix="headrace", partition_of=lambda _: None),
            Graves(publisher, "headrace.dead.two", undertaker, self.clock),
            Lookups(None, 1 << 20),
            publisher,
            self.clock,
            BrokerTime(self.clock),
            cast("Any", frozenset()),
        )
        group = JoinerGroup.model_validate(settings)
        key, reader = ModelVersion("two", 1), cast("Any", self)
        parts = Parts(key, JOINS, reader, tools, settings=group, patience=PATIENCE, may_take=lambda: True)
        await parts.take([0])
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(work, name="joiner") for work in (parts.poll_loop(), parts.turn_loop())]
        try:
            yield parts
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await publisher.stop()

    async def end(self, parts: Parts) -> None:
        """Everything that was written is settled, in the time that this may take."""

        async def is_settled() -> bool:
            parts.wake()
            await parts.commit(1.0)
            if self.at != len(self.log):
                self.clock.advance(1)
            return self.at == len(self.log)

        await wait_until(is_settled, "offsets are held for good")


class SlowPlans:
    """Plans that come when they are let."""

    def __init__(self) -> None:
        self.known: Plan | None = None
        self.waiting: list[Callable[[Plan | None], None]] = []

    def get(self, _: str) -> Plan | None:
        return self.known

    def when(self, _: Hop, then: Callable[[Plan | None], None]) -> None:
        self.waiting.append(then)

    def come(self, plan: Plan | None) -> None:
        self.known = plan
        waiting, self.waiting = self.waiting, []
        for then in waiting:
            then(plan)


async def ended_with_another_open() -> World:
    """A job was answered, and its joiner died while an older one was still waiting; that was a while ago."""
    world = World()
    world.plans.come(PLAN)
    world.part("old", "a")
    world.part("done", "a")
    world.part("done", "b")
    async with world.joiner() as parts:
        await wait_until(lambda: len(world.log) == 4, "there is no marker")
        await parts.commit(1.0)
    assert (world.answers, world.at) == ([("done", Status.OK)], None)
    world.plans = SlowPlans()
    world.clock.advance(PATIENCE.keep_ms / 1000 + 1)
    return world


async def test_a_new_joiner_fires_nothing_again_because_the_plan_comes_later_than_the_marker() -> None:
    world = await ended_with_another_open()
    async with world.joiner() as parts:
        await wait_until(lambda: len(world.plans.waiting) == 3)
        world.plans.come(PLAN)
        world.part("old", "b")
        await wait_until(lambda: ("old", Status.OK) in world.answers)
        await world.end(parts)
    assert world.answers == [("done", Status.OK), ("old", Status.OK)]


async def test_a_job_that_has_ended_is_not_told_that_its_plan_is_unknown() -> None:
    world = await ended_with_another_open()
    async with world.joiner() as parts:
        await wait_until(lambda: len(world.plans.waiting) == 3)
        world.plans.come(None)
        await wait_until(lambda: len(world.answers) > 1)
        await world.end(parts)
    assert world.answers == [("done", Status.OK), ("old", Status.INTERNAL)]


async def test_a_job_whose_plan_nobody_knows_is_answered_once_however_many_parts_it_has() -> None:
    world = World()
    world.part("j", "a")
    world.part("j", "b")
    async with world.joiner() as parts:
        await wait_until(lambda: len(world.plans.waiting) == 2)
        world.plans.come(None)
        await wait_until(lambda: world.answers)
        await world.end(parts)
    assert world.answers == [("j", Status.INTERNAL)]


async def test_a_plan_that_comes_back_does_not_open_a_job_again_that_was_ended_without_it() -> None:
    world = World()
    world.part("j", "a")
    async with world.joiner() as parts:
        await wait_until(lambda: world.plans.waiting)
        world.plans.come(None)
        await wait_until(lambda: world.answers)
        world.plans.known = PLAN
        world.part("j", "b")
        await world.end(parts)
    assert world.answers == [("j", Status.INTERNAL)]


async def test_a_joiner_with_as_many_parked_parts_as_it_can_hold_reads_on_when_their_plan_has_come() -> None:
    world = World()
    world.part("large", "a", carried=300_000)
    world.part("small", "a")
    world.part("small", "b")
    world.part("large", "b", carried=300_000)
    async with world.joiner(max_held_mib=1, poll_records=1) as parts:
        await wait_until(lambda: world.plans.waiting)
        for _ in range(10):
            await asyncio.sleep(0.001)  # whatever it would do without the plan
        world.plans.come(PLAN)
        await wait_until(lambda: len(world.answers) == 2)
        await world.end(parts)
    assert sorted(world.answers) == [("large", Status.OK), ("small", Status.OK)]


async def test_a_part_that_waits_for_its_plan_holds_up_no_other_job() -> None:
    world = World()
    world.part("unknown", "a")
    async with world.joiner() as parts:
        await wait_until(lambda: world.plans.waiting)
        world.plans.known = PLAN
        world.part("j", "a")
        world.part("j", "b")
        await wait_until(lambda: world.answers == [("j", Status.OK)])
        world.plans.come(None)
        await world.end(parts)
    assert world.answers == [("j", Status.OK), ("unknown", Status.INTERNAL)]
