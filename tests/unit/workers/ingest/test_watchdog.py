"""When an engine counts as wedged."""

from __future__ import annotations

import pytest

from workers.ingest.watchdog import FACTOR, MIN_SAMPLES, Watchdog

LOOK = 0.25


def watch(dog: Watchdog, running: int | None, seconds: float, start: float = 0.0) -> float | None:
    """Look four times a second; when the batch was found wedged."""
    for look in range(int(seconds / LOOK) + 1):
        now = start + look * LOOK
        if dog.is_wedged(running, now):
            return now - start
    return None


def measured(seconds: float) -> Watchdog:
    dog = Watchdog(floor_seconds=5.0, unmeasured_seconds=60.0)
    for _ in range(MIN_SAMPLES):
        dog.finished(seconds)
    return dog


def test_a_batch_of_a_model_whose_speed_is_unknown_has_a_limit_of_its_own() -> None:
    assert watch(Watchdog(floor_seconds=5.0, unmeasured_seconds=60.0), 1, 59.0) is None
    assert watch(Watchdog(floor_seconds=5.0, unmeasured_seconds=60.0), 1, 61.0) == pytest.approx(60.25)


def test_a_quick_model_is_given_the_floor_and_a_slow_one_ten_times_its_own() -> None:
    assert watch(measured(0.01), 1, 10.0) == pytest.approx(5.25)
    assert watch(measured(2.0), 1, 30.0) == pytest.approx(2.0 * FACTOR + LOOK)


def test_one_slow_batch_does_not_move_the_limit() -> None:
    dog = measured(0.01)
    dog.finished(100.0)
    assert dog.limit == 5.0
    dog.finished(100.0)
    assert dog.limit == 100.0 * FACTOR


def test_the_age_begins_anew_with_each_batch_and_with_none() -> None:
    dog = measured(0.01)
    assert watch(dog, 1, 4.0) is None
    assert watch(dog, 2, 4.0, start=4.0) is None
    assert watch(dog, None, 100.0, start=8.0) is None
    assert watch(dog, 2, 4.0, start=108.0) is None


def test_time_that_passed_while_nobody_looked_is_not_held_against_the_engine() -> None:
    dog = measured(0.01)
    assert not dog.is_wedged(1, 0.0)
    assert not dog.is_wedged(1, 10_000.0)  # the machine was suspended
    assert watch(dog, 1, 3.0, start=10_000.0) is None
