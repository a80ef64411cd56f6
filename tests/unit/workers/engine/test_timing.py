"""Measuring batches before the first request, on a clock that moves when a batch runs."""

from __future__ import annotations

from collections.abc import Callable

from workers.engine.timing import ROUNDS, measure


class Device:
    """Takes so long for a batch, and as long again for the first one of all."""

    def __init__(self, takes: Callable[[int], float]) -> None:
        self.takes, self.now, self.ran = takes, 0.0, 0

    def clock(self) -> float:
        return self.now

    def run(self, rows: int) -> None:
        self.now += self.takes(rows) * (1 if self.ran else 2)
        self.ran += 1


def test_every_size_has_all_its_rounds_and_a_slow_start_spoils_one_sample() -> None:
    device = Device(lambda rows: 0.001 * rows)
    timings = measure(device.run, [8, 1, 4], 2.0, device.clock)
    assert [timing.rows for timing in timings] == [1, 4, 8]
    assert all(len(timing.seconds) == ROUNDS for timing in timings)
    assert [round(sorted(timing.seconds)[ROUNDS // 2], 6) for timing in timings] == [0.001, 0.004, 0.008]


def test_a_slow_model_is_measured_at_its_smallest_sizes_within_the_time() -> None:
    device = Device(lambda rows: 0.05 * rows)
    timings = measure(device.run, [1, 2, 4, 8, 16], 2.0, device.clock)
    assert [timing.rows for timing in timings] == [1, 2, 4]
    assert device.now <= 2.0 + 0.05 * 8


def test_a_model_that_takes_longer_than_the_time_runs_once_and_tells_nothing() -> None:
    device = Device(lambda _: 5.0)
    assert measure(device.run, [1, 2], 2.0, device.clock) == ()
    assert device.ran == 1


def test_no_sizes_run_nothing() -> None:
    assert measure(Device(lambda _: 1.0).run, [], 2.0) == ()
