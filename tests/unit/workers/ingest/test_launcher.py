"""Models that share an engine: their turns, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ingest.launcher import Launch, Launcher
from workers.ingest.turns import CREDIT_SECONDS, Claimant, Turns
from workers.link import Done, Failed, Part, Timing
from workers.slots import SLOT_COUNT, SlotFile

seconds = st.floats(0.001, 0.2)


@given(costs=st.lists(seconds, min_size=2, max_size=5), urgent=st.sets(st.integers(0, 4)), batches=st.integers(1, 300))
def test_models_that_always_have_work_get_equal_time_even_when_some_claim_to_be_urgent(
    costs: list[float], urgent: set[int], batches: int
) -> None:
    turns, used = Turns(), [0.0] * len(costs)
    models = [turns.join() for _ in costs]
    for _ in range(batches):
        first = turns.order([Claimant(model, 0.0 if model in urgent else 9.0) for model in models], horizon=1.0)[0]
        turns.charge(first, costs[first])
        used[first] += costs[first]
        assert max(used) - min(used) <= CREDIT_SECONDS + max(costs) + 1e-9


@given(costs=st.lists(seconds, min_size=2, max_size=2), idle=st.integers(1, 200))
def test_a_model_that_was_idle_has_saved_nothing_up(costs: list[float], idle: int) -> None:
    turns = Turns()
    busy, late = turns.join(), turns.join()
    for _ in range(idle):
        assert turns.order([Claimant(busy, 9.0)], 0.0) == [busy]
        turns.charge(busy, costs[0])
    in_a_row = 0
    for _ in range(10):
        if turns.order([Claimant(busy, 9.0), Claimant(late, 9.0)], 0.0)[0] == busy:
            break
        turns.charge(late, costs[1])
        in_a_row += 1
    assert in_a_row * costs[1] <= costs[0] + costs[1] + 1e-9


def test_the_most_urgent_goes_first_while_nobody_is_far_behind() -> None:
    turns = Turns()
    first, second, third = (turns.join() for _ in range(3))
    turns.charge(third, CREDIT_SECONDS / 2)
    claimants = [Claimant(first, 50.0), Claimant(second, 50.0), Claimant(third, 0.5)]
    assert turns.order(claimants, horizon=1.0)[0] == third
    turns.charge(third, CREDIT_SECONDS)
    assert turns.order(claimants, horizon=1.0)[-1] == third


def test_what_a_batch_really_took_counts() -> None:
    turns = Turns()
    first, second = turns.join(), turns.join()
    both = [Claimant(first, 9.0), Claimant(second, 9.0)]
    assert turns.order(both, 0.0) == [first, second]
    turns.charge(first, 0.0)
    turns.correct(first, 0.5)
    assert turns.order(both, 0.0) == [second, first]


class Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return int(self.now * 1000)


@dataclass
class Model:
    """A model that has work without end, its batches as long as `takes`."""

    launcher: Launcher
    time: Time
    takes: float
    waiting: bool = True
    keeps: bool = False
    suspect: bool = False
    ran: float = 0.0
    lost: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        self.number = self.launcher.join(self)
        self.slots: dict[int, int] = {}

    @property
    def is_waiting(self) -> bool:
        return self.waiting

    @property
    def has_suspect(self) -> bool:
        return self.suspect

    def latest_start(self) -> float:
        return self.time.now + 60

    def part(self, part: Part) -> None:
        pass

    def is_held(self, slot: int) -> bool:
        return False

    def launch_next(self) -> Launch:
        if self.keeps and not self.launcher.is_idle:
            return Launch.KEPT
        if self.suspect and not self.launcher.is_idle:
            return Launch.NONE
        slot, self.slots[slot] = self.launcher.acquire()
        self.launcher.launched(slot, self.number, self.time.now, self.takes, is_alone=self.suspect)
        return Launch.DONE

    def look(self) -> None:
        pass

    def done(self, done: Done, now: float, *, is_awaited: bool) -> None:
        self.ran += self.takes
        self.launcher.release(done.slot)

    def failed(self, failed: Failed) -> None:
        self.launcher.release(failed.slot)

    def timed(self, timings: Sequence[Timing]) -> None:
        pass

    def expire(self) -> None:
        pass

    def engine_lost(self, *, was_alone: bool) -> None:
        self.lost += (was_alone,)


class Rig:
    """A launcher whose engine is this test."""

    def __init__(self, folder: Path, *takes: float) -> None:
        self.time = Time()
        self.launcher = Launcher(SlotFile.create(folder / "slots", SLOT_COUNT, 4096, 4096), self.time, lambda: True)
        self.models = [Model(self.launcher, self.time, each) for each in takes]

    def in_hand(self) -> int:
        return self.launcher.engine(self.time.now).in_hand

    def finish(self) -> int:
        """The engine ends its oldest batch; whose it was."""
        running = self.launcher.running
        assert running is not None
        model = self.models[running[0]]
        slot = next(slot for slot in range(SLOT_COUNT) if self.launcher.model_in(slot) == model.number)
        self.time.now += model.takes
        self.launcher.done(Done(slot, model.slots[slot], (), int(model.takes * 1e6)))
        return model.number


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, 0.001, 0.05)


def test_a_slow_model_takes_no_more_of_the_engine_than_a_quick_one(rig: Rig) -> None:
    quick, slow = rig.models
    for _ in range(1000):
        rig.launcher.pump()
        assert rig.in_hand() == 2
        rig.finish()
    assert abs(quick.ran - slow.ran) <= 3 * slow.takes
    assert quick.ran > 0.4


def test_a_model_that_waits_for_the_running_batch_keeps_the_ready_place(rig: Rig) -> None:
    quick = rig.models[0]
    rig.launcher.pump()
    assert rig.finish() == quick.number
    quick.keeps = True
    rig.launcher.pump()
    assert rig.in_hand() == 1  # it is quick's turn, and slow must not take its place
    quick.waiting = False
    rig.launcher.pump()
    assert rig.in_hand() == 2


def test_a_suspect_of_one_model_keeps_all_others_out(rig: Rig) -> None:
    quick, slow = rig.models
    rig.launcher.pump()
    quick.suspect = True
    rig.finish()
    rig.launcher.pump()
    rig.finish()
    assert rig.launcher.is_idle
    rig.launcher.pump()
    assert rig.in_hand() == 1
    assert rig.launcher.running is not None
    assert rig.launcher.running[0] == quick.number
    quick.suspect = False
    rig.launcher.pump()
    assert rig.in_hand() == 1
    rig.finish()
    rig.launcher.pump()
    assert rig.in_hand() == 2
    assert slow.waiting


def test_every_model_learns_of_an_engine_that_died_and_old_answers_are_dropped(rig: Rig) -> None:
    quick, slow = rig.models
    rig.launcher.pump()
    stale = [(slot, sequence) for model in rig.models for slot, sequence in model.slots.items()]
    rig.launcher.engine_lost()
    assert [quick.lost, slow.lost] == [(False,), (False,)]
    for slot, sequence in stale:
        rig.launcher.done(Done(slot, sequence, (), 1))
    assert quick.ran == slow.ran == 0
    slow.waiting = False
    quick.keeps = True
    rig.launcher.pump()
    rig.launcher.engine_lost()
    assert quick.lost[-1]
