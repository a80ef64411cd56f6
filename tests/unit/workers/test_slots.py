from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contracts.specs import ModelSpec
from contracts.tensors import DATATYPES, numpy_type
from workers.slots import ALIGNMENT, SLOT_COUNT, SlotFile, SlotPool, align, region_bytes, row_bytes, slots_path


class SlotPoolMachine(RuleBasedStateMachine):
    """The pool against a set of what is taken: no slot or sequence twice, no stale answer taken for a current one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(SLOT_COUNT)
        self.taken: dict[int, int] = {}
        self.past: set[tuple[int, int]] = set()

    @rule()
    def acquire(self) -> None:
        acquired = self.pool.acquire()
        assert (acquired is None) == (len(self.taken) == SLOT_COUNT)
        if acquired is not None:
            slot, sequence = acquired
            assert slot not in self.taken
            assert acquired not in self.past
            self.taken[slot] = sequence

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.taken)))
        self.pool.release(slot)
        self.past.add((slot, self.taken.pop(slot)))

    @precondition(lambda self: len(self.taken) < SLOT_COUNT)
    @rule(data=st.data())
    def release_what_is_free(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(set(range(SLOT_COUNT)) - self.taken.keys())))
        with pytest.raises(ValueError, match="free already"):
            self.pool.release(slot)

    @invariant()
    def counts_what_is_free(self) -> None:
        assert self.pool.free == SLOT_COUNT - len(self.taken)

    @invariant()
    def knows_current_from_stale(self) -> None:
        assert all(self.pool.is_current(*use) for use in self.taken.items())
        assert not any(self.pool.is_current(*use) for use in self.past)

    @rule(slot=st.integers(-5, SLOT_COUNT + 5), sequence=st.integers(-2, 2**40))
    def asks_about_anything(self, slot: int, sequence: int) -> None:
        assert self.pool.is_current(slot, sequence) == (self.taken.get(slot) == sequence)


TestSlotPool = SlotPoolMachine.TestCase


@given(offset=st.integers(0, 2**40), to=st.sampled_from([1, 64, 4096]))
def test_aligning_gives_the_next_multiple(offset: int, to: int) -> None:
    aligned = align(offset, to)
    assert aligned % to == 0
    assert 0 <= aligned - offset < to


dimensions = st.lists(st.sampled_from([-1, 0, 1, 3, 64]), max_size=3)


def spec_of(tensors: list[tuple[str, list[int]]], **fields: Any) -> ModelSpec:
    side = [
        {"name": f"t{index}", "datatype": datatype, "shape": [-1, *dims]}
        for index, (datatype, dims) in enumerate(tensors)
    ]
    return ModelSpec.model_validate(
        {"name": "m", "version": 1, "backend": "python", "inputs": side, "outputs": side} | fields
    )


tensors = st.lists(st.tuples(st.sampled_from(DATATYPES), dimensions), min_size=1, max_size=3)


@given(tensors=tensors, rows=st.integers(1, 256))
def test_a_region_has_room_for_the_largest_batch_within_bounds(tensors: list[tuple[str, list[int]]], rows: int) -> None:
    spec = spec_of(tensors, batching={"max_batch_size": rows})
    size = region_bytes(spec, spec.inputs)
    assert size % 4096 == 0
    needed = sum(align(row_bytes(tensor) * rows) for tensor in spec.inputs)
    assert min(needed, 256 * 1024 * 1024) <= size <= max(needed, 64 * 1024) + 4096


@given(mib=st.floats(0.001, 64))
def test_the_specs_own_figure_decides(mib: float) -> None:
    spec = spec_of([("FP32", [3])], slot_mib=mib)
    size = region_bytes(spec, spec.inputs)
    assert int(mib * 2**20) <= size < int(mib * 2**20) + 4096


def test_a_row_of_closed_dimensions_is_counted_exactly() -> None:
    for datatype in set(DATATYPES) - {"BYTES"}:
        (tensor,) = spec_of([(datatype, [3, 5])]).inputs
        assert row_bytes(tensor) == math.prod([3, 5]) * numpy_type(datatype).itemsize


@pytest.fixture
def slots(tmp_path: Path) -> SlotFile:
    return SlotFile.create(tmp_path / "slots", 3, 8192, 4096)


def test_what_one_side_writes_the_other_reads(slots: SlotFile) -> None:
    other = SlotFile.attach(slots.path, 3, 8192, 4096)
    for slot in range(3):
        slots.input(slot)[:] = bytes([slot + 1]) * 8192
        other.output(slot)[:] = bytes([slot + 101]) * 4096
    for slot in range(3):
        assert bytes(other.input(slot)) == bytes([slot + 1]) * 8192
        assert bytes(slots.output(slot)) == bytes([slot + 101]) * 4096
    other.close()
    slots.close()


def test_regions_start_where_vector_instructions_like_it(slots: SlotFile) -> None:
    for slot in range(3):
        for view in (slots.input(slot), slots.output(slot)):
            assert np.frombuffer(view, np.uint8).ctypes.data % ALIGNMENT == 0
    slots.close()


def test_only_its_owner_may_read_the_file(slots: SlotFile) -> None:
    assert slots.path.stat().st_mode & 0o777 == 0o600
    slots.close()


def test_creating_replaces_a_leftover_and_starts_empty(slots: SlotFile) -> None:
    slots.input(0)[:4] = b"left"
    fresh = SlotFile.create(slots.path, 2, 4096, 4096)
    assert bytes(fresh.input(0)[:4]) == bytes(4)
    fresh.input(0)[:4] = b"mine"
    assert bytes(slots.input(0)[:4]) == b"left"  # another file since
    fresh.close()
    slots.close()


def test_a_missing_or_short_file_is_not_attached(slots: SlotFile, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SlotFile.attach(tmp_path / "none", 3, 8192, 4096)
    with pytest.raises(ValueError, match="greater than file size"):
        SlotFile.attach(slots.path, 4, 8192, 4096)
    slots.close()


def test_closing_while_an_array_looks_into_it_leaves_the_array_alone(slots: SlotFile) -> None:
    array = np.ndarray((4,), np.float32, slots.input(1))
    array[:] = 7
    slots.close()
    slots.close()
    assert array.tolist() == [7, 7, 7, 7]


def test_the_path_of_a_lease_is_named_after_it() -> None:
    assert slots_path("l-1").name == "headrace-l-1"
