"""What is learned from batches and arrivals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ingest.buckets import Buckets, bucket_sizes
from workers.ingest.latency import MIN_SAMPLES, STALE_SECONDS, ArrivalRate, LatencyTable


def table(*samples: tuple[int, float], repeat: int = 10) -> LatencyTable:
    made = LatencyTable(Buckets(bucket_sizes(64)))
    for rows, seconds in samples * repeat:
        made.observe(0.0, rows, seconds)
    return made


def test_nothing_is_known_before_five_batches_of_a_bucket() -> None:
    young = table((8, 0.01), repeat=MIN_SAMPLES - 1)
    assert young.rates() == []
    young.observe(0.0, 8, 0.01)
    assert young.is_known
    assert young.mean(8) == pytest.approx(0.01)


def test_unseen_buckets_are_estimated_between_and_beyond_their_neighbours() -> None:
    known = table((8, 0.010), (32, 0.016))
    assert known.mean(16) == pytest.approx(0.012)
    assert known.mean(64) == pytest.approx(0.024)
    assert known.mean(1) == pytest.approx(0.010)
    # What a single bucket says about larger ones is hopeful, or they would never be tried.
    assert table((8, 0.010)).mean(64) == pytest.approx(0.010)


def test_one_hiccup_is_forgiven_and_two_in_a_row_are_believed() -> None:
    bumped = table((8, 0.010))
    bumped.observe(0.0, 8, 0.5)
    assert bumped.p99(8) < 0.035
    bumped.observe(0.0, 8, 0.5)
    assert bumped.p99(8) >= 0.5


def test_the_tail_falls_slowly_again() -> None:
    slow = table((8, 0.010))
    for _ in range(3):
        slow.observe(0.0, 8, 0.5)
    for _ in range(10):
        slow.observe(0.0, 8, 0.010)
    assert slow.p99(8) >= 0.5
    for _ in range(60):
        slow.observe(0.0, 8, 0.010)
    assert slow.p99(8) < 0.1


def test_old_figures_refuse_nobody() -> None:
    known = table((8, 0.010))
    assert known.may_refuse(STALE_SECONDS / 2)
    assert not known.may_refuse(STALE_SECONDS * 2)


@given(st.floats(0.0005, 0.5), st.floats(0, 0.1), st.integers(0, 1 << 30))
def test_the_tail_covers_the_samples_and_the_mean_lies_among_them(mean: float, jitter: float, seed: int) -> None:
    dice = random.Random(seed)
    known = LatencyTable(Buckets((32,)))
    samples = [mean * dice.uniform(1 - jitter, 1 + jitter) for _ in range(200)]
    for sample in samples:
        known.observe(0.0, 32, sample)
    assert min(samples) <= known.mean(32) * 1.000001
    assert known.mean(32) <= max(samples) * 1.000001
    assert sum(sample > known.p99(32) * 1.000001 for sample in samples[-20:]) <= 1


@given(st.integers(1, 100), st.integers(1, 50))
def test_the_rate_of_steady_arrivals_is_found(rows: int, polls_per_window: int) -> None:
    rate, gap = ArrivalRate(0.25), 0.25 / polls_per_window
    for step in range(polls_per_window * 10):
        rate.observe(step * gap, rows)
    found, truth = rate.at(gap * polls_per_window * 10), rows / gap
    assert truth * 0.55 <= found <= truth * 1.6
    assert rate.at(100.0) < truth / 1000


def seeded() -> LatencyTable:
    made = LatencyTable(Buckets(bucket_sizes(64)))
    made.seed({1: [0.9, 0.002, 0.002], 64: [0.009, 0.008, 0.010], 5: [9.0]})
    return made


def test_seeds_are_predicted_from_but_never_refuse() -> None:
    young = seeded()
    assert young.is_known
    assert (young.mean(1), young.mean(64), young.p99(64)) == (0.002, 0.009, 0.009)
    assert 0.002 < young.mean(32) < 0.009
    for _ in range(MIN_SAMPLES - 1):
        young.observe(1.0, 1, 0.002)
    assert not young.may_refuse(1.0)
    young.observe(1.0, 1, 0.002)
    assert young.may_refuse(1.0)


def test_real_batches_replace_their_seed_and_scale_the_others() -> None:
    known = seeded()
    for _ in range(MIN_SAMPLES):
        known.observe(0.0, 64, 0.018)
    assert known.mean(64) == pytest.approx(0.018)
    assert known.mean(1) == pytest.approx(0.004)


@given(
    st.dictionaries(st.sampled_from(bucket_sizes(64)), st.lists(st.floats(0, 10), min_size=1, max_size=3)),
    st.sampled_from(bucket_sizes(64)),
    st.floats(1e-6, 1.0),
)
def test_no_seed_makes_a_batch_longer_than_the_measured_ones_that_hold_its_rows(
    seeds: dict[int, list[float]], size: int, seconds: float
) -> None:
    known = LatencyTable(Buckets(bucket_sizes(64)))
    known.seed(seeds)
    for _ in range(MIN_SAMPLES):
        known.observe(0.0, size, seconds)
    for rows in seeds:
        most = seconds * max(1.0, rows / size) * 1.000001
        assert known.mean(rows) <= most
        assert known.p99(rows) <= most


def test_a_seed_taken_in_a_bad_moment_turns_nobody_away() -> None:
    known = LatencyTable(Buckets(bucket_sizes(64)))
    known.seed({1: [0.00002] * 3, 32: [0.03] * 3})  # it takes 60 µs; the machine was busy with something else
    for _ in range(MIN_SAMPLES):
        known.observe(0.0, 1, 0.06)  # and so are real requests, which were slower than made-up ones
    assert known.mean(32) <= 0.06 * 32


@given(st.floats(0.001, 0.02), st.floats(0.00001, 0.0005), st.integers(0, 1 << 30))
def test_batches_between_two_sizes_take_what_lies_between(fixed: float, per_row: float, seed: int) -> None:
    dice, known = random.Random(seed), LatencyTable(Buckets(bucket_sizes(64)))
    for _ in range(1500):
        rows = dice.randint(1, 64)
        known.observe(0.0, rows, fixed + per_row * rows)
    for rows in range(17, 65):
        assert known.mean(rows) == pytest.approx(fixed + per_row * rows, rel=0.03)


def test_batches_that_are_filled_up_take_what_a_full_one_does() -> None:
    stepped = LatencyTable(Buckets((8, 16, 32)), is_stepped=True)
    for size in (8, 16, 32) * 40:
        stepped.observe(0.0, size, size / 1000)
    assert stepped.mean(9) == stepped.mean(16) == pytest.approx(0.016)


def test_one_odd_batch_moves_the_mean_by_little_and_a_lasting_change_soon_by_all() -> None:
    dice, known = random.Random(5), LatencyTable(Buckets((32,)))
    for _ in range(200):
        known.observe(0.0, 32, dice.gauss(0.010, 0.0003))
    known.observe(0.0, 32, 0.020)
    assert known.mean(32) < 0.0103
    for _ in range(30):
        known.observe(0.0, 32, 0.014)
    assert known.mean(32) == pytest.approx(0.014, rel=0.05)
