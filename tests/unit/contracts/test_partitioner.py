from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st

from contracts.partitioner import RUN_SECONDS, Partitioner

partition_counts = st.integers(1, 64)


@given(partition_counts, st.integers(0, 1000), st.integers(0, 2000))
def test_every_partition_gets_its_share(partitions: int, first: int, in_flight: int) -> None:
    partitioner = Partitioner(partitions, first=first, longest_run=16)
    sent = Counter(partitioner.next(0.0, in_flight) for _ in range(16 * partitions * 3))
    assert set(sent) == set(range(partitions))
    assert max(sent.values()) - min(sent.values()) <= 16


@given(partition_counts, st.integers(1, 2000))
def test_what_is_in_flight_covers_all_partitions_as_soon_as_it_can(partitions: int, in_flight: int) -> None:
    partitioner = Partitioner(partitions, first=0, longest_run=16)
    window = [partitioner.next(0.0, in_flight) for _ in range(in_flight)]
    assert len(set(window)) == min(partitions, in_flight)


@given(partition_counts, st.integers(0, 5000))
def test_runs_are_long_under_load_and_never_longer_than_allowed(partitions: int, in_flight: int) -> None:
    partitioner = Partitioner(partitions, first=0, longest_run=16)
    runs = [len(list(run)) for _, run in groupby(partitioner.next(0.0, in_flight) for _ in range(16 * 20))]
    if partitions > 1:
        assert max(runs) <= 16
    if in_flight >= 32 * partitions:
        assert max(runs) >= 16


def test_a_trickle_visits_the_partitions_in_turn() -> None:
    partitioner = Partitioner(8, first=3, longest_run=16)
    visited = [partitioner.next(number * 2 * RUN_SECONDS, in_flight=1000) for number in range(16)]
    assert all((before + 1) % 8 == after for before, after in pairwise(visited))


def test_clients_begin_at_different_partitions() -> None:
    starts = {Partitioner(8, first=first, longest_run=16).next(0.0, 0) for first in range(8)}
    assert starts == set(range(8))


@given(st.binary(), partition_counts)
def test_a_key_always_means_the_same_partition(key: bytes, partitions: int) -> None:
    one, other = (Partitioner(partitions, first=first, longest_run=16) for first in (0, 5))
    other.next(0.0, 100)
    assert one.of_key(key) == other.of_key(key) < partitions


def test_keys_follow_the_published_rule() -> None:
    # crc32(b"123456789") is the check value of the algorithm's definition.
    assert Partitioner(64, first=0, longest_run=1).of_key(b"123456789") == 0xCBF43926 % 64


def test_a_topic_grows_and_never_shrinks() -> None:
    partitioner = Partitioner(4, first=0, longest_run=1)
    partitioner.grow(8)
    assert {partitioner.next(0.0, 0) for _ in range(8)} == set(range(8))
    partitioner.grow(2)
    assert partitioner.partitions == 8
