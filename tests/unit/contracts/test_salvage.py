"""Batches with records in them that nobody can decode."""

from __future__ import annotations

import gzip
import struct

from aiokafka.record.memory_records import MemoryRecords
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.kafka import Partition
from contracts.adapters.kafka.salvage import salvage
from tests.contract.log_raw import HEADER_BYTES, UNREADABLE, batch_with_headers

HERE = Partition("t", 3)
RECORD = st.tuples(st.binary(max_size=200), st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=9)), max_size=3))


def packed(records: list[tuple[bytes, list[tuple[str, bytes]]] | None], base: int = 0) -> bytes:
    """A batch with something unreadable in the place of None."""
    raw = [UNREADABLE if r is None else (r[0], [(k.encode(), v) for k, v in r[1]]) for r in records]
    return struct.pack(">q", base) + batch_with_headers(raw)[8:]


def sealed(batch: bytes) -> bytes:
    """A batch that was changed, with length and checksum that go with it."""
    changed = bytearray(batch)
    struct.pack_into(">i", changed, 8, len(changed) - 12)
    struct.pack_into(">I", changed, 17, crc32c(bytes(changed[21:])))
    return bytes(changed)


@given(st.lists(st.one_of(st.none(), RECORD), min_size=1, max_size=12), st.integers(0, 10**9), st.data())
def test_every_readable_record_is_found_whatever_lies_around_it(
    records: list[tuple[bytes, list[tuple[str, bytes]]] | None], base: int, data: st.DataObject
) -> None:
    first = base + data.draw(st.integers(0, len(records) - 1))
    found = salvage(packed(records, base), HERE, first)
    assert found is not None
    assert found.end == base + len(records)
    want = [(base + at, *record) for at, record in enumerate(records) if record is not None and base + at >= first]
    assert [(each.offset, each.value, list(each.headers)) for each in found.records] == want


def test_what_the_library_can_read_is_read_alike() -> None:
    batch = packed([(b"one", [("a", b"b")]), (b"", []), (b"three", [("c", b"")])], base=40)
    library = list(MemoryRecords(batch).next_batch())
    found = salvage(batch, HERE, 40)
    assert found is not None
    assert [(r.offset, r.timestamp, r.timestamp_type, r.key, r.value, list(r.headers)) for r in found.records] == [
        (r.offset, r.timestamp, r.timestamp_type, r.key, r.value, list(r.headers)) for r in library
    ]


def test_the_batch_is_found_behind_others_and_only_whole() -> None:
    data = packed([(b"a", [])], 10) + packed([None, (b"b", [])], 11)
    found = salvage(data, HERE, 12)
    assert found is not None
    assert ([each.value for each in found.records], found.end) == ([b"b"], 13)
    assert salvage(data, HERE, 13) is None
    assert salvage(data[:-1], HERE, 12) is None


def test_compressed_batches_are_unpacked() -> None:
    plain = bytearray(packed([None, (b"b" * 99, [])]))
    struct.pack_into(">h", plain, 21, 1)
    found = salvage(sealed(bytes(plain[:HEADER_BYTES]) + gzip.compress(bytes(plain[HEADER_BYTES:]))), HERE, 0)
    assert found is not None
    assert [each.value for each in found.records] == [b"b" * 99]


def test_a_batch_that_cannot_be_trusted_or_unpacked_yields_nothing_and_its_end() -> None:
    batch = bytearray(packed([(b"a", []), (b"b", [])]))
    batch[-3] ^= 1
    assert salvage(bytes(batch), HERE, 0) == ((), 2)
    for kind in (1, 2, 3, 4, 7):
        struct.pack_into(">h", batch, 21, kind)
        assert salvage(sealed(bytes(batch)), HERE, 0) == ((), 2)


@given(st.binary(max_size=60))
def test_rubbish_inside_a_batch_ends_nothing(rubbish: bytes) -> None:
    batch = packed([(b"a", [])])
    found = salvage(sealed(batch[:HEADER_BYTES] + rubbish), HERE, 0)
    assert found is not None
    assert found.end == 1
