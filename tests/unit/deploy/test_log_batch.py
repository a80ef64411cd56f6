"""A batch is stored as it came, checked, and stamped; an idempotent producer's retries collapse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode

from deploy.embedded.log_batch import HEADER, Appended, Sequences, accept, find_time, place, read_batch
from deploy.embedded.log_wire import LogError
from tests.contract.log_raw import HEADER_BYTES, make_batch, split_batches

VALUES = st.lists(st.binary(max_size=40), min_size=1, max_size=5)
PRODUCER = 7


def code_of(action: object) -> ErrorCode:
    assert callable(action)
    with pytest.raises(LogError) as caught:
        action()
    return caught.value.code


@given(VALUES)
def test_a_batch_is_read_field_by_field(values: list[bytes]) -> None:
    data = make_batch(values, timestamps=range(5, 5 + len(values)), producer=(PRODUCER, 1, 10))
    batch = read_batch(b"xx" + data, 2)
    assert batch is not None
    assert (batch.size, batch.record_count, batch.next_offset) == (len(data), len(values), len(values))
    assert (batch.base_timestamp, batch.max_timestamp) == (5, 4 + len(values))
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (PRODUCER, 1, 10)
    assert batch.last_sequence == 9 + len(values)


@given(VALUES, st.data())
def test_no_cut_batch_is_read(values: list[bytes], data: st.DataObject) -> None:
    whole = make_batch(values)
    assert read_batch(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@given(VALUES, st.data())
def test_no_changed_batch_is_read(values: list[bytes], data: st.DataObject) -> None:
    changed = bytearray(make_batch(values))
    position = data.draw(st.integers(16, len(changed) - 1))  # offset, length and epoch are not in the checksum's range
    changed[position] ^= data.draw(st.integers(1, 255))
    assert read_batch(bytes(changed)) is None


@given(VALUES, st.integers(0, 2**62), st.none() | st.integers(0, 2**62))
def test_a_placed_batch_keeps_its_records_and_a_right_checksum(
    values: list[bytes], base_offset: int, append_time: int | None
) -> None:
    data = make_batch(values, timestamps=[3] * len(values))
    placed, header = place(accept(data), data, base_offset, append_time)
    (stored,) = split_batches(header + data[HEADER_BYTES:])
    assert stored.is_intact
    assert (stored.base_offset, stored.leader_epoch, stored.base_timestamp) == (base_offset, 0, 3)
    assert (stored.attributes, stored.max_timestamp) == ((0, 3) if append_time is None else (8, append_time))
    assert read_batch(header + data[HEADER.size :]) == placed


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ErrorCode.corrupt_message),
        (make_batch([b"v"])[:-1], ErrorCode.corrupt_message),
        (make_batch([b"v"]) * 2, ErrorCode.invalid_record),
        (make_batch([b"v"], attributes=0x10), ErrorCode.invalid_record),  # of a transaction
        (make_batch([b"v"], attributes=0x20), ErrorCode.invalid_record),  # a control batch
    ],
)
def test_what_is_no_single_plain_batch_is_refused(data: bytes, code: ErrorCode) -> None:
    assert code_of(lambda: accept(data)) is code


def test_a_time_is_found_record_by_record() -> None:
    data = make_batch([b"a", b"b", b"c"], timestamps=[100, 90, 120])
    assert [find_time(data, moment) for moment in (0, 100, 101, 120)] == [(100, 0), (100, 0), (120, 2), (120, 2)]


def test_the_time_of_a_compressed_batch_is_that_of_its_first_record() -> None:
    assert find_time(make_batch([b"a", b"b"], timestamps=[100, 120], attributes=1), 110) == (100, 0)


def test_nonsense_behind_a_right_checksum_does_not_break_the_search_for_a_time() -> None:
    data = make_batch([b"a"], timestamps=[100])
    (stored,) = split_batches(data)
    broken = data[: -len(stored.records)] + b"\xff" * len(stored.records)
    assert find_time(broken, 100) == (100, 0)


class Log:
    """A partition's log, as far as sequence numbers care: one entry per appended batch."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int]] = []
        self.sequences = Sequences()

    def send(self, count: int, sequence: int, epoch: int = 0, producer: int = PRODUCER) -> int:
        data = make_batch([b"v"] * count, producer=(producer, epoch, sequence))
        batch = accept(data)
        earlier = self.sequences.check(batch)
        if earlier is not None:
            return earlier.base_offset
        placed, _ = place(batch, data, sum(entry[1] for entry in self.entries), None)
        self.sequences.record(placed)
        self.entries.append((sequence, count))
        return placed.base_offset


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_retries_of_the_last_five_batches_are_answered_as_the_first_time(sends: list[tuple[int, int]]) -> None:
    log, sequence, acknowledged = Log(), 0, []
    for count, retried in sends:
        acknowledged.append((count, sequence, log.send(count, sequence)))
        sequence += count
        again, first, offset = acknowledged[-1 - min(retried, len(acknowledged) - 1)]
        assert log.send(again, first) == offset
    assert log.entries == [(first, count) for count, first, _ in acknowledged]


@given(st.integers(1, 5), st.integers(-20, 20))
def test_only_the_next_sequence_number_is_appended(count: int, step: int) -> None:
    log = Log()
    log.send(count, 100)
    wanted = 100 + count
    if step == 0:
        assert log.send(1, wanted) == count
    elif (wanted + step, 1) != (100, count):
        assert code_of(lambda: log.send(1, wanted + step)) is ErrorCode.out_of_order_sequence_number


def test_sequence_numbers_wrap_to_zero() -> None:
    log = Log()
    log.send(2, 2**31 - 1)
    assert log.send(1, 1) == 2


def test_a_new_epoch_begins_at_zero_and_ends_the_old_one() -> None:
    log = Log()
    log.send(3, 0)
    assert code_of(lambda: log.send(1, 3, epoch=1)) is ErrorCode.out_of_order_sequence_number
    assert log.send(1, 0, epoch=1) == 3
    assert code_of(lambda: log.send(1, 3)) is ErrorCode.invalid_producer_epoch


def test_a_batch_without_a_producer_id_is_not_remembered() -> None:
    sequences, batch = Sequences(), accept(make_batch([b"v"]))
    sequences.record(batch)
    assert sequences.check(batch) is None


def test_the_append_time_of_the_first_attempt_is_answered_again() -> None:
    sequences = Sequences()
    data = make_batch([b"v"], producer=(PRODUCER, 0, 0))
    placed, _ = place(accept(data), data, 40, 1234)
    sequences.record(placed)
    assert sequences.check(accept(data)) == Appended(40, 1234)


def test_the_producers_that_were_silent_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.embedded.log_batch._REMEMBERED_PRODUCERS", 2)
    log = Log()
    for producer, sequence in ((1, 0), (2, 0), (1, 1), (3, 0)):
        log.send(1, sequence, producer=producer)
    assert log.send(1, 0, producer=1) == 0  # known: a repeat
    assert log.send(1, 0, producer=2) == 4  # forgotten: appended again
