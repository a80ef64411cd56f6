"""Which steps run, which are lost, and what the engine may forget."""

from __future__ import annotations

import itertools
from typing import NamedTuple, cast

from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.kafka import Partition, Record
from contracts.messages import SequenceStep
from contracts.serving_specs import SequencesSpec
from tests.deliveries import delivery
from workers.draining.claim import Claim
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery, Origin
from workers.ingest.sequences import Sequences, Verdict

CLAIM = Claim(Partition("t", 0), 0)
RUN, LOST, FULL, REPEATED = Verdict.RUN, Verdict.LOST, Verdict.FULL, Verdict.REPEATED
_numbers = itertools.count()


class Raw(NamedTuple):
    key: bytes | None = None


def step(
    name: str = "s", *, start: bool = False, end: bool = False, claim: Claim = CLAIM, request: str = ""
) -> Delivery:
    made = delivery()
    made.origin = Origin(claim, cast("Record", Raw()), request or f"r{next(_numbers)}", None)
    made.sequence = SequenceStep(name, start, end)
    return made


def judge(
    sequences: Sequences, *steps: Delivery, in_flight: tuple[Delivery, ...] = (), now: float = 0.0
) -> list[Verdict]:
    return [verdict for _, verdict in sequences.admit(steps, in_flight, now)]


def run(sequences: Sequences, *steps: Delivery, now: float = 0.0) -> list[Verdict]:
    judged = sequences.admit(steps, (), now)
    sequences.ran([found for found, verdict in judged if verdict is RUN], now)
    return [verdict for _, verdict in judged]


def known(most: int = 8, idle: float = 10.0) -> Sequences:
    return Sequences(SequencesSpec(max=most, idle_seconds=idle))


def test_only_a_start_begins_and_only_what_ran_goes_on() -> None:
    sequences = known()
    assert judge(sequences, step()) == [LOST]
    assert judge(sequences, step(start=True)) == [RUN]
    assert judge(sequences, step()) == [LOST]  # the start was not run
    assert run(sequences, step(start=True)) == [RUN]
    assert run(sequences, step()) == [RUN]
    assert run(sequences, step(start=True)) == [RUN]  # again from the beginning
    assert run(sequences, step(end=True)) == [RUN]
    assert run(sequences, step()) == [LOST]


def test_a_new_engine_and_another_claim_know_nothing() -> None:
    sequences = known()
    run(sequences, step(start=True))
    assert run(sequences, step(claim=Claim(Partition("t", 0), 5))) == [LOST]
    assert sequences.sweep(0.0, ()) == ("s",)
    run(sequences, step(start=True))
    sequences.lose()
    assert run(sequences, step()) == [LOST]
    assert sequences.sweep(0.0, ()) == ()


def test_as_many_as_may_and_no_more_however_many_begin_at_once() -> None:
    sequences = known(most=3)
    run(sequences, step("a", start=True))
    flying = step("b", start=True)
    assert judge(sequences, flying) == [RUN]
    new = [step(name, start=True) for name in "cde"]
    assert judge(sequences, step("a", start=True), *new, in_flight=(flying,)) == [RUN, RUN, FULL, FULL]
    run(sequences, step("a", end=True))
    assert run(sequences, *(step(name, start=True) for name in "cde")) == [RUN, RUN, RUN]


def test_a_record_that_was_written_twice_steps_once() -> None:
    sequences = known()
    run(sequences, step(start=True, request="one"))
    run(sequences, step(request="two"))
    assert run(sequences, step(start=True, request="one")) == [REPEATED]
    assert run(sequences, step(request="two")) == [REPEATED]
    assert run(sequences, step(request="three")) == [RUN]


def test_the_idle_the_given_up_and_the_moved_are_swept() -> None:
    sequences, moved = known(idle=10.0), Claim(Partition("t", 1), 0)
    run(sequences, step("idle", start=True), step("used", start=True), step("gone", start=True))
    run(sequences, step("moved", start=True, claim=moved))
    moved.is_over = True
    run(sequences, step("used"), now=6.0)
    assert sorted(sequences.sweep(6.0, {"gone"})) == ["gone", "moved"]
    assert sequences.sweep(11.0, ()) == ("idle",)
    assert run(sequences, step("idle"), step("used"), now=11.0) == [LOST, RUN]


def test_what_begins_again_before_the_sweep_is_not_forgotten() -> None:
    sequences = known()
    run(sequences, step(start=True))
    other = Claim(Partition("t", 0), 9)
    assert run(sequences, step(start=True, claim=other)) == [RUN]
    assert sequences.sweep(0.0, ()) == ()
    assert run(sequences, step(claim=other)) == [RUN]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30), st.randoms())
def test_no_batch_holds_two_steps_of_a_sequence_and_none_overtakes_another(
    arrivals: list[tuple[str, bool]], random: object
) -> None:
    queue = BatchQueue(per_key=True)
    sent = [step(name) for name, _ in arrivals]
    ran: list[Delivery] = []
    for number, (_, is_cut) in enumerate(arrivals):
        queue.put(sent[number])
        if is_cut:
            ran += cut(queue)
    while queue:
        ran += cut(queue)
    for name in "abc":
        of_name = [found for found in ran if found.order_key == name.encode()]
        assert of_name == [found for found in sent if found.order_key == name.encode()]


def cut(queue: BatchQueue) -> list[Delivery]:
    ready, _ = queue.take(None, 4, 0.0)
    assert len({found.order_key for found in ready}) == len(ready)
    for found in ready:
        queue.settled(found)
    return ready
