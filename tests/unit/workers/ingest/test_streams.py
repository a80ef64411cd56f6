"""The ingest's side of a stream: who gets which part, who is let go, and when the engine may go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from contracts.adapters.kafka import Partition, Record
from contracts.messages import Receipt, RequestHeaders, Status
from contracts.tensors import Tensor
from tests.helpers import FakeClock
from workers.draining.claim import Claim
from workers.ingest.delivery import Delivery, Leg, Origin, Place
from workers.ingest.flight import Flight
from workers.ingest.responder import MAX_RESPONSE_BYTES, Responder
from workers.ingest.streams import PLAN_SECONDS, Streams
from workers.link import Continue, Done, Part, Region
from workers.slots import SlotFile

ROOM = 2 * 1024 * 1024


class World:
    """Everything around the streams, in the test's hand."""

    device = "cpu"

    def __init__(self, slots: SlotFile) -> None:
        self.slots = slots
        self.clock = FakeClock()
        self.has_room = self.is_trusted = True
        self.cancelled: set[str] = set()
        self.sent: list[tuple[str, str, Any]] = []
        self.settled: list[str] = []
        self.to_engine: list[Continue] = []
        self.unknown: list[Callable[[bool], None]] | None = None
        self.claim = Claim(Partition("t", 0), 0)
        self.streams = Streams(
            slots=slots,
            clock=self.clock,
            responder=cast("Responder", self),
            send=cast("Any", self.to_engine.append),
            is_trusted=lambda: self.is_trusted,
            cancelled=self.cancelled,
            settle=lambda delivery: self.settled.append(delivery.origin.request_id),
            worker="w",
        )

    def when_known(self, _: Delivery, then: Callable[[bool], None]) -> None:
        if self.unknown is None:
            then(True)
        else:
            self.unknown.append(then)

    def partial(self, delivery: Delivery, outputs: tuple[Tensor, ...], place: Place) -> bool:
        if sum(len(output.data) for output in outputs) > MAX_RESPONSE_BYTES:
            self.fail(delivery, Status.INTERNAL, "a part is too large")
            return False
        self.sent.append((delivery.origin.request_id, f"part {place.number} of {place.run}", values(outputs)))
        return True

    def succeed(self, delivery: Delivery, outputs: tuple[Tensor, ...], _: Receipt, place: Place | None = None) -> None:
        what = "OK" if place is None else f"OK {place.number} of {place.run}"
        self.sent.append((delivery.origin.request_id, what, values(outputs)))

    def fail(self, delivery: Delivery, status: Status, message: str, *, retryable: bool = False) -> None:
        self.sent.append((delivery.origin.request_id, status.value, message))

    def request(self, name: str, *, stream: bool = True, deadline: float = 1e9, leg: Leg | None = None) -> Delivery:
        self.claim.open += 1
        return Delivery(
            Origin(self.claim, cast("Record", None), name, None, leg=leg),
            inputs=(),
            parameters={},
            rows=1,
            batch_key=None,
            taken=0.0,
            deadline=deadline,
            queued_us=0,
            stream=stream,
        )

    def launch(self, *deliveries: Delivery, filled: int = 0) -> Flight:
        rows = len(deliveries)
        return Flight([*deliveries], rows, "full", self.streams.begin([*deliveries], rows + filled))

    def part(self, flight: Flight, *numbers: int, rows: tuple[int, ...] | None = None, final: bool = False) -> None:
        self.streams.part(flight, Part(0, 1, self.outputs(*numbers), rows, final, 10))

    def outputs(self, *numbers: int, width: int = 1) -> tuple[Region, ...]:
        array = np.repeat(np.array(numbers, np.int64).reshape(-1, 1), width, axis=1)
        self.slots.output(0)[: array.nbytes] = array.tobytes()
        return (Region("n", "INT64", array.shape, 0, array.nbytes),)


def values(outputs: tuple[Tensor, ...]) -> list[int]:
    return [value for output in outputs for value in output.to_numpy().ravel().tolist()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    slots = SlotFile.create(tmp_path / "slots", 1, 4096, ROOM)
    yield World(slots)
    slots.close()


def test_each_request_gets_its_own_rows_and_the_end_has_the_number_of_parts(world: World) -> None:
    flight = world.launch(world.request("a"), world.request("b"))
    world.part(flight, 1, 2)
    world.part(flight, 3, rows=(1,))
    world.part(flight, 4, rows=(1,), final=True)
    world.streams.finish(flight, Done(0, 1, (), 10))
    assert world.sent == [
        ("a", "part 0 of w.1", [1]),
        ("b", "part 0 of w.1", [2]),
        ("b", "part 1 of w.1", [3]),
        ("b", "OK 2 of w.1", [4]),
        ("a", "OK 1 of w.1", []),
    ]
    assert world.settled == ["b", "a"]
    assert [message.gone for message in world.to_engine] == [(), (), (1,)]


def test_whoever_takes_no_parts_gets_them_joined(world: World) -> None:
    flight = world.launch(world.request("a", stream=False), world.request("b"))
    world.part(flight, 1, 2)
    world.part(flight, 3, 4)
    world.streams.finish(flight, Done(0, 1, world.outputs(5, 6), 10))
    assert [entry for entry in world.sent if entry[0] == "a"] == [("a", "OK", [1, 3, 5])]


def test_rows_that_only_fill_a_batch_belong_to_nobody(world: World) -> None:
    flight = world.launch(world.request("a"), filled=2)
    world.part(flight, 1, 2, 3)
    world.part(flight, 9, 4, rows=(2, 0))
    assert [entry[2] for entry in world.sent] == [[1], [4]]
    assert [message.gone for message in world.to_engine] == [(1, 2)] * 2


def test_the_engine_waits_while_the_log_is_slow_and_is_not_taken_for_wedged(world: World) -> None:
    flight = world.launch(world.request("a"))
    world.has_room = False
    world.part(flight, 1)
    assert (world.to_engine, flight.is_held) == ([], True)
    world.streams.resume()
    assert world.to_engine == []
    world.has_room = True
    world.streams.resume()
    world.streams.resume()
    assert (world.to_engine, flight.is_held) == ([Continue(0, 1)], False)


def test_an_engine_that_is_gone_is_not_told_to_go_on(world: World) -> None:
    flight = world.launch(world.request("a"))
    world.has_room = False
    world.part(flight, 1)
    world.streams.engine_lost()
    world.has_room = True
    world.streams.resume()
    assert world.to_engine == []
    assert flight.open == flight.deliveries


def test_the_expired_and_the_cancelled_are_let_go_and_the_last_one_ends_the_batch(world: World) -> None:
    late = world.clock.monotonic() + 5
    flight = world.launch(world.request("a"), world.request("b", deadline=late), world.request("c"))
    world.part(flight, 1, 2, 3)
    world.cancelled.add("a")
    world.part(flight, 4, 5, 6)
    world.clock.advance(5)
    world.part(flight, 7, 8, 9)
    assert [(name, what) for name, what, _ in world.sent if "part" not in what] == [
        ("a", "CANCELLED"),
        ("b", "DEADLINE_EXCEEDED"),
    ]
    world.part(flight, 0, rows=(2,), final=True)
    assert [(message.gone, message.stop) for message in world.to_engine] == [
        ((), False),
        ((0,), False),
        ((0, 1), False),
        ((0, 1, 2), True),
    ]


def test_a_worker_in_doubt_ends_nobodys_stream(world: World) -> None:
    flight = world.launch(world.request("a", deadline=0.0))
    world.is_trusted = False
    world.part(flight, 1)
    assert [entry[1] for entry in world.sent] == ["part 0 of w.1"]
    assert world.to_engine == [Continue(0, 1)]


def test_a_stream_whose_partition_was_given_away_is_left_to_the_next_owner(world: World) -> None:
    flight = world.launch(world.request("a"))
    world.claim.is_over = True
    world.part(flight, 1)
    assert [entry[1] for entry in world.sent] == ["part 0 of w.1"]
    assert world.to_engine == [Continue(0, 1, (0,), stop=True)]
    assert (world.claim.open, world.settled) == (0, ["a"])


def test_too_large_a_part_and_too_large_a_whole_end_in_an_error(world: World) -> None:
    flight = world.launch(world.request("a"), world.request("b", stream=False))
    width = MAX_RESPONSE_BYTES // 8 + 1
    world.streams.part(flight, Part(0, 1, world.outputs(1, width=width), (0,), final=False, step_us=1))
    for _ in range(2):
        world.streams.part(flight, Part(0, 1, world.outputs(1, width=width // 2 + 1), (1,), final=False, step_us=1))
    assert [(name, what) for name, what, _ in world.sent] == [("a", "INTERNAL"), ("b", "INTERNAL")]
    assert world.to_engine[-1].stop


def test_parts_of_different_shapes_cannot_be_joined(world: World) -> None:
    flight = world.launch(world.request("a", stream=False))
    for width in (1, 2):
        world.streams.part(flight, Part(0, 1, world.outputs(1, width=width), None, final=False, step_us=1))
    world.streams.finish(flight, Done(0, 1, (), 1))
    ((_, what, message),) = world.sent
    assert what == "INTERNAL"
    assert "different shapes" in message


async def test_the_engine_waits_with_the_first_part_until_it_is_known_who_gets_it(world: World) -> None:
    world.unknown = []
    flight = world.launch(world.request("a"), world.request("b"), world.request("c", stream=False))
    world.part(flight, 1, 2, 3)
    assert (world.sent, world.to_engine, flight.is_held) == ([], [], True)
    takes_parts, collected = world.unknown
    takes_parts(True)
    assert world.to_engine == []
    collected(False)
    assert (world.sent, world.to_engine, flight.is_held) == ([("a", "part 0 of w.1", [1])], [Continue(0, 1)], False)
    world.streams.finish(flight, Done(0, 1, world.outputs(4, 5, 6), 10))
    assert world.sent[1:] == [("a", "OK 1 of w.1", [4]), ("b", "OK", [2, 5]), ("c", "OK", [3, 6])]


async def test_a_part_is_handed_out_once_though_the_engine_must_wait_for_room(world: World) -> None:
    world.unknown, world.has_room = [], False
    flight = world.launch(world.request("a"))
    world.part(flight, 1)
    world.unknown[0](True)
    world.streams.resume()
    assert (world.sent, world.to_engine) == ([("a", "part 0 of w.1", [1])], [])
    world.has_room = True
    world.streams.resume()
    assert (len(world.sent), world.to_engine) == (1, [Continue(0, 1)])


@pytest.mark.looptime
async def test_the_engine_does_not_wait_for_a_plan_that_may_never_come(world: World) -> None:
    world.unknown = []
    flight = world.launch(world.request("a"), world.request("b"))
    lost, found = world.unknown
    world.part(flight, 1, 2)
    found(True)
    await asyncio.sleep(PLAN_SECONDS - 0.1)
    assert (world.sent, world.to_engine) == ([], [])
    await asyncio.sleep(0.2)
    assert (world.sent, world.to_engine) == ([("b", "part 0 of w.1", [2])], [Continue(0, 1)])
    world.part(flight, 3, 4)
    lost(True)  # too late: the first part of it was kept
    world.streams.finish(flight, Done(0, 1, world.outputs(5, 6), 10))
    assert world.sent[1:] == [("b", "part 1 of w.1", [4]), ("a", "OK", [1, 3, 5]), ("b", "OK 2 of w.1", [6])]
    assert len(world.to_engine) == 2


def test_a_stream_ends_with_the_job_that_it_is_a_step_of(world: World) -> None:
    class Ended(Leg):
        is_over = True

    flight = world.launch(world.request("a", leg=Ended(RequestHeaders("a", None), 1e9)))
    world.part(flight, 1)
    assert world.to_engine == [Continue(0, 1, (0,), stop=True)]
    assert world.claim.open == 1
