"""How a step's end goes on: nothing is answered before everything behind it is acknowledged, retries come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from contracts.adapters.kafka import Partition, Producer, Record
from contracts.adapters.plans import PlanStore
from contracts.codec import decode_response
from contracts.compile import compile_plan
from contracts.messages import Hop, Receipt, ReplyAddress, RequestHeaders, Status
from contracts.names import ModelVersion
from contracts.pipelines import parse_pipeline
from contracts.plans import Plan
from contracts.tensors import Ref, Tensor
from tests.helpers import FakeClock
from workers.draining import plan_cache
from workers.draining.claim import Claim
from workers.draining.courier import Courier
from workers.draining.lookups import Lookups
from workers.draining.plan_cache import PATIENCE_SECONDS, PlanCache
from workers.draining.publisher import Publisher
from workers.ingest.delivery import Leg, Origin, Place
from workers.ingest.onward import Onward

FAN = """
name: fan
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  head: {model: m@1, inputs: {row: input.row}, retries: 2}
  a: {model: m@2, inputs: {row: head.row}}
  b: {model: m@3, inputs: {row: head.row}}
outputs: {a: a.row, b: b.row}
"""
KEY = ModelVersion("m", 1)
ROWS = (Tensor.from_numpy("row", np.zeros((1, 4), np.float32)),)


class At(NamedTuple):
    """As much of a record as this needs."""

    offset: int


class Posted(NamedTuple):
    """A record on its way, with what follows its acknowledgement or its loss."""

    topic: str
    record: Any
    settle: tuple[Callable[[Any], None], Any]
    lost: tuple[Callable[[Any], None], Any]

    def acknowledge(self) -> None:
        self.settle[0](self.settle[1])


@dataclass
class Post:
    """A publisher that keeps what it is given."""

    sent: list[Posted] = field(default_factory=list)

    def publish(self, topic: str, _partition: int, record: Any, settle: Any, lost: Any, _: Any = None) -> None:
        self.sent.append(Posted(topic, record, settle, lost))


@dataclass
class Counter:
    """A desk that notes what it is asked."""

    has_time: bool = True
    put_offs: int = 0
    graves: list[Callable[[object], None]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def put_off(self, _origin: Origin, _message: str, *, left: float, timeout: float | None) -> bool:
        assert (left, timeout) == (30.0, None)
        self.put_offs += self.has_time
        return self.has_time

    def put_aside(self, _origin: Origin, _message: str, _attempts: int, then: Callable[[object], None]) -> None:
        self.graves.append(then)

    def unroutable(self, _origin: Origin, message: str, then: Callable[[object], None]) -> None:
        self.lost.append(message)
        then(None)


class Bench:
    """One worker of m@1 with a step in its hands."""

    def __init__(self, *, knows_topics: bool = True) -> None:
        spec, _ = parse_pipeline(FAN, "test")
        self.plan: Plan = compile_plan(spec, pin=lambda n, v, _: ModelVersion(n, v or 1), signature_of=lambda _: None)
        self.post, self.desk, clock = Post(), Counter(), FakeClock()
        plans = PlanCache(cast("PlanStore", None), cast("Producer", None), clock, prefix="headrace")
        plans.add(self.plan)
        courier = Courier(
            cast("Publisher", self.post), clock, prefix="headrace", partition_of=lambda _: 0 if knows_topics else None
        )
        self.onward = Onward(KEY, plans, courier, Lookups(None, 1000), self.desk, clock)
        self.claim = Claim(Partition("t", 0), 0)
        self.claim.open = 1
        self.clock = clock

    def origin(self, step: str = "head", attempt: int = 1, reply: str = "headrace.replies.svc") -> Origin:
        hop = Hop("job-1", self.plan.digest, "fan@1", step)
        headers = RequestHeaders("child", ReplyAddress(reply, 0, "token"), hop=hop, attempt=attempt)
        leg = Leg(headers, self.clock.monotonic() + 30.0)
        return Origin(self.claim, cast("Record", At(0)), "child", headers.reply, attempt, leg)

    @property
    def is_answered(self) -> bool:
        return self.claim.open == 0


def test_a_step_is_answered_when_the_last_of_what_follows_is_acknowledged() -> None:
    bench = Bench()
    bench.onward.succeed(bench.origin(), ROWS, Receipt())
    assert [posted.topic for posted in bench.post.sent] == ["headrace.requests.m.2", "headrace.requests.m.3"]
    bench.post.sent[1].acknowledge()
    assert not bench.is_answered
    bench.post.sent[0].acknowledge()
    assert bench.is_answered


def test_a_step_that_fails_is_tried_again_as_often_as_the_plan_says() -> None:
    bench = Bench()
    for attempt in (1, 2):
        bench.onward.fail(bench.origin(attempt=attempt), Status.POISON, "no", Receipt(), retryable=False)
    assert (bench.desk.put_offs, bench.post.sent, bench.desk.graves) == (2, [], [])
    bench.onward.fail(bench.origin(attempt=3), Status.POISON, "no", Receipt(), retryable=False)
    assert len(bench.desk.graves) == 1
    assert not bench.post.sent, "it is kept before anything follows"
    bench.desk.graves[0](None)
    assert bench.post.sent


def test_what_another_attempt_cannot_change_is_not_tried_again() -> None:
    bench = Bench()
    bench.onward.fail(bench.origin(), Status.INVALID, "no", Receipt(), retryable=False)
    assert (bench.desk.put_offs, len(bench.post.sent)) == (0, 2)  # both branches hear of it


def test_without_time_for_another_attempt_the_failure_goes_on() -> None:
    bench = Bench()
    bench.desk.has_time = False
    bench.onward.fail(bench.origin(), Status.INTERNAL, "no", Receipt(), retryable=True)
    assert len(bench.post.sent) == 2


def test_a_topic_that_is_gone_ends_the_job_with_what_the_plan_makes_of_it() -> None:
    bench = Bench()
    bench.onward.succeed(bench.origin(), ROWS, Receipt())
    for posted in list(bench.post.sent):
        posted.lost[0](posted.lost[1])
    following = bench.post.sent[2:]
    assert {posted.topic for posted in following} == {"headrace.joins.fan.1"}
    assert not bench.is_answered
    for posted in following:
        posted.acknowledge()
    assert bench.is_answered


def test_a_step_that_its_plan_does_not_have_ends_the_job() -> None:
    bench = Bench()
    bench.onward.succeed(bench.origin("nowhere"), ROWS, Receipt())
    (posted,) = bench.post.sent
    response, _ = decode_response(posted.record[1], posted.record[0])
    assert (response.id, response.status, response.model) == ("job-1", Status.INVALID, "fan")


def test_an_answer_that_has_nowhere_to_go_is_kept() -> None:
    bench = Bench()
    bench.onward.succeed(bench.origin("nowhere", reply="elsewhere"), ROWS, Receipt())
    assert not bench.post.sent
    assert len(bench.desk.lost) == 1
    assert bench.is_answered


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_plan_that_comes_later_holds_nobody_up_and_one_that_is_gone_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    monkeypatch.setattr(plan_cache, "PATIENCE_SECONDS", 0)
    bench = Bench()
    raw = bench.plan.encoded if is_known else None

    class Store:
        async def get(self, _: str) -> bytes | None:
            return raw

    class Topics:
        async def partitions(self, _: str) -> int:
            return 3

    plans = PlanCache(cast("PlanStore", Store()), cast("Producer", Topics()), bench.clock, prefix="headrace")
    post = cast("Publisher", bench.post)
    courier = Courier(post, bench.clock, prefix="headrace", partition_of=plans.partition_of)
    onward = Onward(KEY, plans, courier, Lookups(None, 1000), bench.desk, bench.clock)
    outputs = bytearray(16)
    onward.succeed(bench.origin(), (Tensor("row", "FP32", (1, 4), memoryview(outputs)),), Receipt())
    outputs[:] = b"x" * 16  # the slot is used again before the plan is there
    assert not bench.post.sent
    await next(iter(plans._fetches.values()))
    if is_known:
        assert [posted.topic for posted in bench.post.sent] == ["headrace.requests.m.2", "headrace.requests.m.3"]
        assert b"xxxx" not in bench.post.sent[0].record[0]
    else:
        (posted,) = bench.post.sent
        response, _ = decode_response(posted.record[1], posted.record[0])
        assert response.status is Status.INTERNAL
        assert response.error is not None
        assert response.error.retryable
        assert "submit the job again" in response.error.message


def test_a_cancelled_step_ends_its_job_whatever_the_plan_says_of_failures() -> None:
    bench = Bench()
    bench.plan = compile_plan(
        parse_pipeline(FAN.replace("retries: 2", "on_error: skip"), "test")[0],
        pin=lambda name, version, _: ModelVersion(name, version or 1),
        signature_of=lambda _: None,
    )
    bench.onward._plans.add(bench.plan)
    bench.onward.fail(bench.origin(), Status.CANCELLED, "cancelled by its caller", Receipt(), retryable=False)
    (posted,) = bench.post.sent
    assert decode_response(posted.record[1], posted.record[0])[0].status is Status.CANCELLED
    posted.acknowledge()
    assert bench.is_answered


TAIL = """
name: tail
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  head: {model: m@1, inputs: {row: input.row}}
  sum: {reduce: mean, inputs: {row: [head.row, {const: [[2, 2, 2, 2]], datatype: FP32}]}}
outputs: {half: sum.row}
"""


def streaming(text: str = TAIL) -> Bench:
    bench = Bench()
    spec, _ = parse_pipeline(text, "test")
    bench.plan = compile_plan(spec, pin=lambda n, v, _: ModelVersion(n, v or 1), signature_of=lambda _: None)
    bench.onward._plans.add(bench.plan)
    return bench


def passes_parts(bench: Bench, origin: Origin) -> list[bool]:
    found: list[bool] = []
    bench.onward.when_known(origin, found.append)
    return found


def test_a_part_goes_on_by_itself_and_the_end_says_how_many_went_before() -> None:
    bench = streaming()
    origin = bench.origin()
    assert passes_parts(bench, origin) == [True]
    (half,) = bench.onward.part(origin, ROWS, Receipt()) or ()
    assert (half.name, half.to_numpy().tolist()) == ("half", [[1, 1, 1, 1]])
    bench.onward.succeed(origin, (), Receipt(), Place(1, "w.1"))
    (posted,) = bench.post.sent
    response, _ = decode_response(posted.record[1], posted.record[0])
    assert (response.id, response.status, response.index, response.run) == ("job-1", Status.OK, 1, "w.1")
    assert (response.outputs, response.parameters) == ((), {})
    assert not bench.is_answered
    posted.acknowledge()
    assert bench.is_answered


def test_a_part_that_cannot_go_on_ends_the_job() -> None:
    bench = streaming()
    origin = bench.origin()
    assert passes_parts(bench, origin) == [True]
    odd = Tensor.from_numpy("row", np.zeros((1, 3), np.float32))
    assert bench.onward.part(origin, (odd,), Receipt()) is None
    (posted,) = bench.post.sent
    assert b"step sum" in posted.record[0]
    posted.acknowledge()
    assert bench.is_answered


@pytest.mark.parametrize(
    ("text", "step"),
    [(FAN, "head"), (TAIL, "nowhere"), (TAIL, "sum"), (TAIL.replace("m@1", "m@2"), "head")],
    ids=["others read it", "no such step", "no model", "another's model"],
)
def test_parts_go_on_from_the_tail_only(text: str, step: str) -> None:
    bench = streaming(text)
    assert passes_parts(bench, bench.origin(step)) == [False]


def test_a_value_in_the_store_that_the_tail_reads_has_the_parts_collected() -> None:
    bench = streaming(TAIL.replace("{const: [[2, 2, 2, 2]], datatype: FP32}", "input.row"))
    origin = bench.origin()
    assert origin.leg is not None
    origin.leg.carried = (Tensor("input.row", "FP32", (1, 4), ref=Ref("0" * 64, 16)),)
    assert passes_parts(bench, origin) == [False]
    origin.leg.carried = (Tensor("input.row", "FP32", (1, 4), ROWS[0].data),)
    assert passes_parts(bench, origin) == [True]


async def test_parts_wait_for_a_plan_that_comes_later_and_are_collected_without_one() -> None:
    class Nothing:
        async def get(self, _: str) -> bytes | None:
            bench.clock.advance(PATIENCE_SECONDS)
            return None

    bench = Bench()
    plans = PlanCache(cast("PlanStore", Nothing()), cast("Producer", None), bench.clock, prefix="headrace")
    bench.onward._plans = plans
    found = passes_parts(bench, bench.origin())
    assert found == []
    await next(iter(plans._fetches.values()))
    assert found == [False]
