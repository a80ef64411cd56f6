"""The metric of what waits: every row once, under the topic that it came from, and none when none waits."""

from __future__ import annotations

from typing import Any, cast

from msgspec import structs

from contracts import topics
from contracts.adapters.kafka import Partition
from contracts.telemetry import REGISTRY
from tests.deliveries import delivery
from workers.draining.claim import Claim
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import LANES, Delivery
from workers.ingest.lane import show_waiting
from workers.ingest.room import Room


class Batches:
    """A queue with nothing behind it."""

    def __init__(self) -> None:
        self.queue, self.room = BatchQueue(), Room()

    @property
    def waiting_rows(self) -> int:
        return self.queue.rows


def shown(topic: str) -> float | None:
    return REGISTRY.get_sample_value("headrace_worker_queue_rows", {"topic": topic})


def of(priority: str, rows: int, *, in_lane: bool) -> Delivery:
    number = LANES[priority]
    made = delivery(rows, lane=number)
    claim = Claim(Partition("t", 0), 0, lane=number if in_lane else None)
    made.origin = structs.replace(made.origin, claim=claim)
    return made


def test_a_topic_without_lanes_shows_all_its_rows_whatever_their_priority_and_nothing_when_they_have_gone() -> None:
    batches = Batches()
    show_waiting("alone", cast("Any", batches))
    batches.queue.put(of("normal", 2, in_lane=False))
    batches.queue.put(of("high", 3, in_lane=False))
    assert shown("alone") == 5
    batches.queue.remove(lambda _: True)
    assert shown("alone") == 0


def test_rows_of_a_lane_are_shown_under_it_and_not_under_the_request_topic_too() -> None:
    batches = Batches()
    show_waiting("laned", cast("Any", batches), batches.room)
    high, low = topics.lane("laned", "high"), topics.lane("laned", "low")
    batches.queue.put(of("high", 1, in_lane=False))
    assert (shown("laned"), shown(high), shown(low)) == (1, 0, 0)
    batches.room.open_lanes(batches.queue.count_lanes)
    batches.queue.put(of("high", 10, in_lane=True))
    batches.queue.put(of("low", 100, in_lane=True))
    assert (shown("laned"), shown(high), shown(low)) == (1, 10, 100)
    batches.queue.remove(lambda _: True)
    assert (shown("laned"), shown(high), shown(low)) == (0, 0, 0)
