"""Answers that nobody takes: replaced where they are too large, and kept where they have nowhere to go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from contracts.codec import decode_response
from contracts.dead_letters import Undertaker, parse_dead_letter
from contracts.emissions import Job
from contracts.messages import ReplyAddress, Status
from contracts.names import ModelVersion
from contracts.plans import Answer, Ask, Binding, Member, Node, Plan, Source
from contracts.tensors import Tensor
from tests.helpers import FakeClock
from workers.draining.courier import Courier
from workers.draining.graves import Graves
from workers.draining.publisher import Publisher

PLAN = Plan(pipeline=ModelVersion("fan", 1), nodes=(), partitions=1)
REPLY = "headrace.replies.pipes"
DEAD = "headrace.dead.fan"


class Post:
    """What was published, with what may become of it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, Any, Any, Any]] = []

    def publish(self, topic: str, _: int, record: Any, settle: Any, lost: Any, diverted: Any = None) -> None:
        self.sent.append((topic, record, settle, lost, diverted))

    def then(self, which: int) -> Any:
        """Let the last record come to its end: 2 acknowledged, 3 lost, 4 diverted; returns that record."""
        posted = self.sent[-1]
        function, argument = cast("tuple[Callable[[Any], None], Any]", posted[which])
        function(argument)
        return posted[1]


class Bench:
    def __init__(self, *, rows: int) -> None:
        self.post, self.done = Post(), list[object]()
        publisher, clock = cast("Publisher", self.post), FakeClock()
        courier = Courier(publisher, clock, prefix="headrace", partition_of=lambda _: None)
        courier.graves = Graves(publisher, DEAD, Undertaker("fan@1", "", "lease", 1, "host"), clock)
        outputs = (Tensor.from_numpy("y", np.zeros((rows, 4), np.float32)),)
        courier.send(Job("job-1", PLAN, ReplyAddress(REPLY, 0, "me")), [Answer(outputs)], 0.0, self.done.append)

    @property
    def topics(self) -> list[str]:
        return [posted[0] for posted in self.post.sent]


@pytest.mark.parametrize("how", [3, 4], ids=["lost", "diverted"])
def test_an_answer_whose_partition_is_gone_or_takes_nothing_is_a_dead_letter(how: int) -> None:
    bench = Bench(rows=1)
    bench.post.then(how)
    assert bench.topics == [REPLY, DEAD]
    assert not bench.done, "not before the letter is acknowledged"
    value, headers, _ = bench.post.then(2)
    letter = parse_dead_letter(0, 0, headers, value)
    assert (letter.request_id, letter.reason, letter.source) == ("job-1", "unroutable", "headrace.joins.fan.1/0/-")
    assert letter.body == value
    assert len(bench.done) == 1


def test_an_answer_too_large_for_its_topic_is_replaced_by_one_that_says_so() -> None:
    bench = Bench(rows=10_000)
    bench.post.then(3)
    assert bench.topics == [REPLY, REPLY]
    value, headers = bench.post.then(2)[:2]
    response, _ = decode_response(headers, value)
    assert response.status is Status.INTERNAL
    assert response.error is not None
    assert "does not take" in response.error.message
    assert len(bench.done) == 1


def test_when_even_that_is_lost_the_answer_itself_is_kept() -> None:
    bench = Bench(rows=10_000)
    (large, *_) = bench.post.then(3)
    bench.post.then(3)
    assert bench.topics == [REPLY, REPLY, DEAD]
    assert bench.post.then(2)[0] == large
    assert len(bench.done) == 1


def test_what_goes_past_a_step_that_cannot_be_asked_is_what_it_was_when_it_was_sent() -> None:
    """The values of a step are views of a slot, which holds another batch when the loss is noticed."""
    given = Binding("x", (Source("input", "x"),))
    plan = Plan(
        pipeline=ModelVersion("line", 1),
        partitions=1,
        nodes=(
            Node(name="input", kind="input", outputs=("x",)),
            Node(
                name="gone",
                kind="model",
                host="input",
                model=ModelVersion("gone", 1),
                outputs=("y",),
                on_error="skip",
                keep=("input.x",),
                members=(Member((given,)),),
            ),
            Node(
                name="output",
                kind="output",
                host="gone",
                members=(Member((Binding("o", (Source("gone", "y"), Source("input", "x"))),)),),
            ),
        ),
    )
    slot = bytearray(np.full((1, 4), 7, np.float32).tobytes())
    asked, past = (Tensor(name, "FP32", (1, 4), memoryview(slot)) for name in ("x", "input.x"))
    post, done = Post(), list[object]()
    courier = Courier(cast("Publisher", post), FakeClock(), prefix="headrace", partition_of=lambda _: 0)
    ask = Ask("gone", (), ModelVersion("gone", 1), (asked,), {past.name: past}, {})
    courier.send(Job("job-1", plan, ReplyAddress(REPLY, 0, "me")), [ask], 10.0, done.append)
    slot[:] = bytes(len(slot))
    post.then(3)
    (value, headers, _), *_ = (posted[1] for posted in post.sent[1:])
    response, _ = decode_response(headers, value)
    assert response.status is Status.OK
    assert response["o"].to_numpy().tolist() == [[7.0] * 4]


def test_a_dead_letter_topic_that_does_not_exist_holds_nobody_up() -> None:
    bench = Bench(rows=1)
    for _ in range(3):
        bench.post.then(3)
    assert bench.topics == [REPLY, DEAD, DEAD]
    assert len(bench.done) == 1


def test_the_answer_of_a_last_step_is_kept_by_its_worker_when_its_partition_takes_nothing() -> None:
    post, done, kept = Post(), list[object](), list[Callable[[object], None]]()
    courier = Courier(cast("Publisher", post), FakeClock(), prefix="headrace", partition_of=lambda _: None)
    courier.send(
        Job("job-1", PLAN, ReplyAddress(REPLY, 0, "me")),
        [Answer((Tensor.from_numpy("y", np.zeros((1, 4), np.float32)),))],
        0.0,
        done.append,
        unroutable=lambda _, then: kept.append(then),
    )
    post.then(4)
    assert not done
    (then,) = kept
    then(None)
    assert len(done) == 1
