"""When a partition that is read counts as standing still."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.kafka import Partition
from workers.draining.stall import StallWatch

A, B = Partition("t", 0), Partition("t", 1)


def looks(watch: StallWatch, seconds: float, positions: dict[Partition, int], start: float = 0.0) -> list[Partition]:
    """Look five times a second."""
    found = []
    for step in range(int(seconds * 5)):
        found += watch.look(start + step / 5, positions)
    return found


def test_only_what_stood_for_the_whole_time_is_named() -> None:
    watch = StallWatch(30)
    assert looks(watch, 20, {A: 5, B: 5}) == []
    assert looks(watch, 15, {A: 5, B: 6}, start=20) == [A]


def test_what_was_named_is_counted_anew() -> None:
    assert looks(StallWatch(10), 41, {A: 5}) == [A] * 4


def test_a_partition_that_was_not_asked_for_starts_afresh() -> None:
    watch = StallWatch(10)
    looks(watch, 9, {A: 5})
    looks(watch, 1, {}, start=9)
    assert looks(watch, 9, {A: 5}, start=10) == []


def test_time_without_looks_hardly_counts() -> None:
    watch = StallWatch(10)
    assert [watch.look(now, {A: 5}) for now in (0.0, 1e6, 2e6, 3e6)] == [[]] * 4


@given(st.lists(st.floats(0.01, 0.9), max_size=200))
def test_a_position_that_moves_with_every_look_never_stands_still(pauses: list[float]) -> None:
    watch, now = StallWatch(1), 0.0
    for position, pause in enumerate(pauses):
        now += pause
        assert watch.look(now, {A: position}) == []
