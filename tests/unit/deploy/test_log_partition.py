"""Segments: what is appended is read back, byte for byte, whatever the file system and kill -9 do."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode

from deploy.embedded.log_config import parse_config
from deploy.embedded.log_partition import INDEX_INTERVAL, Partition
from deploy.embedded.log_wire import LogError
from tests.contract.log_raw import StoredBatch, make_batch, split_batches

NOW = 1_700_000_000_000
SEGMENT_BYTES = 1 << 20
ALL = 1 << 30


def config(**overrides: str) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in overrides.items()}


def open_partition(folder: Path, **overrides: str) -> Partition:
    return Partition(folder / "0", parse_config(config(**overrides)))


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    opened = open_partition(tmp_path, segment_bytes=str(SEGMENT_BYTES))
    yield opened
    opened.close(keep=False)


def read_all(partition: Partition) -> list[StoredBatch]:
    batches: list[StoredBatch] = []
    offset = partition.start_offset
    while offset < partition.end_offset:
        some = split_batches(partition.read(offset, ALL, whole_batch=True))
        batches += some
        offset = some[-1].base_offset + some[-1].last_offset_delta + 1
    return batches


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from([0, 1, 30, 500, INDEX_INTERVAL, 70_000]), min_size=1, max_size=4), min_size=1),
    st.data(),
)
def test_reading_begins_at_the_batch_that_holds_the_offset(sizes: list[list[int]], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        partition = open_partition(Path(folder), segment_bytes=str(SEGMENT_BYTES))
        sent = [make_batch([bytes(size) for size in batch]) for batch in sizes]
        bases = [partition.append(batch, NOW).base_offset for batch in sent]
        assert bases == list(itertools.accumulate(map(len, sizes[:-1]), initial=0))
        offset = data.draw(st.integers(0, partition.end_offset - 1))
        max_bytes = data.draw(st.integers(0, 200_000))
        held = max(index for index, base in enumerate(bases) if base <= offset)
        got = partition.read(offset, max_bytes, whole_batch=True)
        batches = split_batches(got)
        assert batches[0].base_offset == bases[held]
        assert len(got) <= max(max_bytes, len(sent[held]))
        assert [batch.records for batch in batches] == [sent[held + index][61:] for index, _ in enumerate(batches)], (
            "records differ from what was sent"
        )
        first_fits = len(sent[held]) <= max_bytes
        assert bool(partition.read(offset, max_bytes, whole_batch=False)) == first_fits
        partition.close(keep=False)


def test_segments_roll_and_are_read_across(partition: Partition, tmp_path: Path) -> None:
    for number in range(30):
        partition.append(make_batch([bytes([number]) * 100_000]), NOW)
    assert len(list(tmp_path.glob("0/*.log"))) == 3
    assert [batch.base_offset for batch in read_all(partition)] == list(range(30))


def test_only_offsets_of_the_log_can_be_read(partition: Partition) -> None:
    partition.append(make_batch([b"v"] * 3), NOW)
    assert partition.read(3, ALL, whole_batch=True) == b""
    for offset in (-1, 4):
        with pytest.raises(LogError) as caught:
            partition.read(offset, ALL, whole_batch=True)
        assert caught.value.code is ErrorCode.offset_out_of_range


def test_an_append_wakes_those_who_wait(partition: Partition) -> None:
    woken: list[str] = []
    partition.waiters.add(lambda: woken.append("waiter"))
    partition.append(make_batch([b"v"]), NOW)
    assert woken == ["waiter"]


def test_a_repeated_batch_is_neither_stored_nor_announced(partition: Partition) -> None:
    data = make_batch([b"v"], producer=(5, 0, 0))
    first = partition.append(data, NOW)
    woken: list[str] = []
    partition.waiters.add(lambda: woken.append("waiter"))
    assert partition.append(data, NOW) == first
    assert (partition.end_offset, woken) == (1, [])


@settings(max_examples=40)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.data())
def test_a_torn_tail_is_cut_and_nothing_else(sizes: list[int], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        partition = open_partition(Path(folder))
        for size in sizes:
            partition.append(make_batch([bytes(size)]), NOW)
        stored = read_all(partition)
        partition.close(keep=True)
        (file,) = Path(folder).glob("0/*.log")
        whole = file.read_bytes()
        kept = data.draw(st.integers(0, len(whole)))
        file.write_bytes(whole[:kept] + data.draw(st.binary(max_size=80)))

        again = open_partition(Path(folder))
        intact = [batch for batch in stored if sum(b.length + 12 for b in stored[: batch.base_offset + 1]) <= kept]
        assert read_all(again) == intact
        assert again.append(make_batch([b"next"]), NOW).base_offset == len(intact)
        assert [batch.base_offset for batch in read_all(again)] == list(range(len(intact) + 1))
        again.close(keep=False)


def test_sequences_and_times_are_known_after_a_restart(tmp_path: Path) -> None:
    partition = open_partition(tmp_path, message_timestamp_type="LogAppendTime")
    data = make_batch([b"v"] * 2, producer=(5, 0, 0))
    first = partition.append(data, NOW)
    partition.close(keep=True)
    again = open_partition(tmp_path, message_timestamp_type="LogAppendTime")
    assert again.append(data, NOW + 5) == first
    assert again.append(make_batch([b"w"], producer=(5, 0, 2)), NOW + 5).base_offset == 2
    assert [again.find_time(moment) for moment in (0, NOW, NOW + 1, NOW + 6)] == [
        (NOW, 0),
        (NOW, 0),
        (NOW + 5, 2),
        (-1, -1),
    ]
    again.close(keep=False)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=400), st.integers(0, 51))
def test_the_first_record_at_or_after_a_time_is_found(times: list[int], wanted: int) -> None:
    with TemporaryDirectory() as folder:
        partition = open_partition(Path(folder))
        for time in times:
            partition.append(make_batch([b"v"], timestamps=[time]), NOW)
        expected = next(((time, offset) for offset, time in enumerate(times) if time >= wanted), (-1, -1))
        assert partition.find_time(wanted) == expected
        partition.close(keep=False)


def fill(partition: Partition, count: int, *, first_time: int = NOW) -> None:
    """`count` segments but for one batch, a second apart."""
    for number in range(count):
        partition.append(make_batch([bytes(SEGMENT_BYTES)], timestamps=[first_time + 1000 * number]), NOW)


def test_retention_by_bytes_keeps_at_least_what_it_says(tmp_path: Path) -> None:
    limits = {"segment_bytes": str(SEGMENT_BYTES), "max_message_bytes": str(4 << 20), "retention_ms": "-1"}
    partition = open_partition(tmp_path, **limits, retention_bytes=str(2 * SEGMENT_BYTES))
    fill(partition, 5)
    partition.enforce_retention(NOW)
    assert (partition.start_offset, partition.end_offset) == (3, 5)
    assert len(list(tmp_path.glob("0/*.log"))) == 2
    partition.close(keep=False)


def test_retention_by_time_drops_what_is_older_and_in_the_end_everything(tmp_path: Path) -> None:
    limits = {"segment_bytes": str(SEGMENT_BYTES), "max_message_bytes": str(4 << 20), "retention_ms": "10000"}
    partition = open_partition(tmp_path, **limits)
    fill(partition, 4)
    partition.enforce_retention(NOW + 10_000)
    assert partition.start_offset == 0
    partition.enforce_retention(NOW + 11_001)
    assert partition.start_offset == 2
    partition.enforce_retention(NOW + 60_000)
    assert (partition.start_offset, partition.end_offset) == (4, 4)
    assert sum(file.stat().st_size for file in tmp_path.glob("0/*.log")) == 0
    partition.close(keep=True)
    again = open_partition(tmp_path, **limits)
    assert again.append(make_batch([b"v"]), NOW).base_offset == 4
    again.close(keep=False)


def test_nothing_is_dropped_without_a_limit(tmp_path: Path) -> None:
    partition = open_partition(tmp_path, retention_ms="-1", max_message_bytes=str(4 << 20))
    fill(partition, 3)
    partition.enforce_retention(NOW * 2)
    assert partition.start_offset == 0
    partition.close(keep=False)


def test_deleted_records_are_out_of_range_and_their_files_go(partition: Partition, tmp_path: Path) -> None:
    for _ in range(30):
        partition.append(make_batch([bytes(100_000)]), NOW)
    partition.delete_before(25)
    assert len(list(tmp_path.glob("0/*.log"))) == 1
    assert [batch.base_offset for batch in split_batches(partition.read(25, ALL, whole_batch=True))] == list(
        range(25, 30)
    )
    with pytest.raises(LogError):
        partition.read(24, ALL, whole_batch=True)


def test_a_record_over_the_limit_is_refused(tmp_path: Path) -> None:
    partition = open_partition(tmp_path, max_message_bytes="100")
    with pytest.raises(LogError) as caught:
        partition.append(make_batch([bytes(100)]), NOW)
    assert caught.value.code is ErrorCode.message_too_large
    partition.close(keep=False)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk looks like to a process: a write ends early, the next one fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_refuses_and_recovers_without_a_trace(tmp_path: Path) -> None:
    partition = open_partition(tmp_path)
    partition.append(make_batch([b"before"]), NOW)
    with files_of_at_most(500):
        for _ in range(3):
            with pytest.raises(OSError, match=r"No space left|File too large"):
                partition.append(make_batch([bytes(1000)], producer=(5, 0, 0)), NOW)
        assert partition.append(make_batch([b"small"]), NOW).base_offset == 1
    assert partition.append(make_batch([bytes(1000)], producer=(5, 0, 0)), NOW).base_offset == 2
    stored = read_all(partition)
    partition.close(keep=True)
    again = open_partition(tmp_path)
    assert read_all(again) == stored
    assert [batch.is_intact for batch in stored] == [True] * 3
    again.close(keep=False)
