from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from contracts.errors import InvalidRequest
from contracts.specs import TensorSpec
from contracts.tensors import BYTES, DATATYPES, numpy_type
from tests.engine_process import fill
from workers.backends.base import Arrays
from workers.engine.exchange import OutputMismatch, OutputRegions, made_up_inputs, read_inputs, warm_up_sizes
from workers.link import Region

ROOM = 16 * 1024


def tensor(name: str, datatype: str = "FP32", shape: tuple[int, ...] = (-1,)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[TensorSpec], Arrays, int]:
    """Outputs of a batch with the specs that they honour."""
    rows = draw(st.integers(1, 6))
    specs, outputs = [], {}
    for index in range(draw(st.integers(1, 4))):
        datatype = draw(st.sampled_from(DATATYPES))
        tail = draw(st.lists(st.integers(0, 4), max_size=2).map(tuple))
        elements = st.binary(max_size=9) if datatype == BYTES else None
        array = draw(arrays.arrays(numpy_type(datatype), (rows, *tail), elements=elements, fill=st.nothing()))
        name = f"t{index}"
        outputs[name] = np.asfortranarray(array) if draw(st.booleans()) else array
        specs.append(tensor(name, datatype, (-1, *(draw(st.sampled_from([size, -1])) for size in tail))))
    return specs, outputs, rows


@given(answer=answers())
def test_outputs_come_out_of_a_slot_as_they_went_in(answer: tuple[list[TensorSpec], Arrays, int]) -> None:
    specs, outputs, rows = answer
    slot = memoryview(bytearray(b"\xa5" * ROOM))
    got = read_inputs(slot, OutputRegions(specs, ROOM).write(outputs, rows, slot))
    assert list(got) == [spec.name for spec in specs]
    for name, array in outputs.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        assert got[name].tobytes() == array.tobytes() if array.dtype != object else (got[name] == array).all()


@given(answer=answers())
def test_regions_are_aligned_apart_and_leave_the_rest_of_the_slot_alone(
    answer: tuple[list[TensorSpec], Arrays, int],
) -> None:
    specs, outputs, rows = answer
    slot = bytearray(b"\xa5" * ROOM)
    regions = OutputRegions(specs, ROOM).write(outputs, rows, memoryview(slot))
    end = 0
    for region in regions:
        assert region.offset % 64 == 0
        assert region.offset >= end
        assert set(slot[end : region.offset]) <= {0xA5}
        end = region.offset + region.size
    assert set(slot[end:]) <= {0xA5}


@given(answer=answers())
def test_outputs_fit_a_slot_of_just_their_size_and_no_smaller_one(answer: tuple[list[TensorSpec], Arrays, int]) -> None:
    specs, outputs, rows = answer
    regions, _ = OutputRegions(specs, ROOM).place(outputs, rows)
    end = max(region.offset + region.size for region in regions)
    slot = memoryview(bytearray(end))
    OutputRegions(specs, end).write(outputs, rows, slot)
    if end:
        with pytest.raises(OutputMismatch, match=f"take {end} bytes, but a slot has room for {end - 1}.*slot_mib"):
            OutputRegions(specs, end - 1).write(outputs, rows, slot)


Y = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([Y], "the model returned a list, not a dict"),
        (None, "the model returned a NoneType, not a dict"),
        ({}, "output 'y' is missing"),
        ({"z": Y}, "output 'y' is missing"),
        ({"y": Y, "z": Y, "a": Y}, "returned 'a', 'z', which model.yaml does not declare"),
        ({"y": Y.tolist()}, "output 'y' is a list, not a numpy array"),
        ({"y": 3}, "output 'y' is an int, not a numpy array"),
        ({"y": Y.astype(np.float64)}, "output 'y' is an array of float64, but model.yaml declares FP32"),
        ({"y": Y.astype(">f4")}, "output 'y' is an array of >f4, but model.yaml declares FP32"),
        ({"y": Y.astype(object)}, "output 'y' is an array of object, but model.yaml declares FP32"),
        ({"y": Y[:2]}, r"output 'y' has the shape \[2, 2\] for a batch of 3 rows"),
        ({"y": np.zeros((), np.float32)}, r"output 'y' has the shape \[\] for a batch of 3 rows"),
        ({"y": Y[:, :1]}, r"output 'y' has the shape \[3, 1\], but model.yaml declares \[-1, 2\]"),
        ({"y": Y[:, 0]}, r"output 'y' has the shape \[3\], but model.yaml declares \[-1, 2\]"),
        ({"y": Y[..., None]}, r"output 'y' has the shape \[3, 2, 1\], but model.yaml declares \[-1, 2\]"),
    ],
)
def test_outputs_that_contradict_the_spec_are_named_and_nothing_is_written(outputs: object, words: str) -> None:
    slot = bytearray(b"\xa5" * 4096)
    with pytest.raises(OutputMismatch, match=words):
        OutputRegions([tensor("y", shape=(-1, 2))], 4096).write(outputs, 3, memoryview(slot))
    assert set(slot) == {0xA5}


def test_texts_may_be_str_bytes_or_numpy_strings() -> None:
    regions, slot = OutputRegions([tensor("y", BYTES)], 4096), memoryview(bytearray(4096))
    for texts in (np.array(["ä", "bc"]), np.array([b"\xc3\xa4", b"bc"]), np.array(["ä", b"bc"], dtype=object)):
        got = read_inputs(slot, regions.write({"y": texts}, 2, slot))
        assert got["y"].tolist() == ["ä".encode(), b"bc"]


def test_numbers_where_texts_are_declared_are_a_mismatch() -> None:
    with pytest.raises(OutputMismatch, match=r"array of float32, but model\.yaml declares BYTES"):
        OutputRegions([tensor("y", BYTES, (-1, 2))], 4096).place({"y": Y}, 3)


def test_objects_that_are_no_texts_are_a_mismatch() -> None:
    with pytest.raises(OutputMismatch, match="output 'y' holds a dict among its texts"):
        OutputRegions([tensor("y", BYTES)], 4096).place({"y": np.array([b"", {}], dtype=object)}, 2)


def test_brain_floats_are_their_patterns() -> None:
    slot = memoryview(bytearray(4096))
    patterns = np.array([0x3F80, 0xC000], np.uint16)
    got = read_inputs(slot, OutputRegions([tensor("y", "BF16")], 4096).write({"y": patterns}, 2, slot))
    assert got["y"].tolist() == patterns.tolist()


def test_number_inputs_look_into_the_slot() -> None:
    memory = bytearray(4096)
    regions = fill(memoryview(memory), {"x": np.arange(6, dtype=np.int32).reshape(2, 3)})
    x = read_inputs(memoryview(memory), regions)["x"]
    memory[regions[0].offset] = 42
    assert x.tolist() == [[42, 1, 2], [3, 4, 5]]


def test_text_inputs_are_bytes_objects() -> None:
    slot = memoryview(bytearray(4096))
    regions = fill(slot, {"x": np.array([["ä", ""], ["b", "c\0"]])})
    assert read_inputs(slot, regions)["x"].tolist() == [["ä".encode(), b""], [b"b", b"c"]]


@pytest.mark.parametrize(
    "region",
    [
        Region("x", "FP32", (2, 600), 0, 4800),
        Region("x", "FP32", (1,), 4094, 4),
        Region("x", "FP32", (1,), 9000, 4),
        Region("x", BYTES, (3,), 0, 8),
    ],
)
def test_a_region_outside_its_slot_is_not_read(region: Region) -> None:
    with pytest.raises((TypeError, ValueError, InvalidRequest)):
        read_inputs(memoryview(bytearray(4096)), [region])


def test_made_up_inputs_are_zeros_with_open_dimensions_of_one() -> None:
    inputs = made_up_inputs([tensor("a", "INT64", (-1, -1, 3)), tensor("b", "BOOL")], 5)
    assert inputs is not None
    assert {name: (array.dtype.name, array.shape, bool(array.any())) for name, array in inputs.items()} == {
        "a": ("int64", (5, 1, 3), False),
        "b": ("bool", (5,), False),
    }


def test_no_texts_are_made_up() -> None:
    assert made_up_inputs([tensor("a"), tensor("b", BYTES)], 1) is None


@pytest.mark.parametrize(
    ("most", "capacity", "sizes"),
    [
        (64, ROOM, [64, 32, 1]),
        (7, ROOM, [7, 4, 1]),
        (2, ROOM, [2, 1]),
        (1, ROOM, [1]),
        (65536, 64 * 1000, [1000, 500, 1]),  # a slot holds no more than a thousand rows
        (64, 10, [1]),
    ],
)
def test_models_are_warmed_up_with_the_largest_a_middle_and_the_smallest_batch(
    most: int, capacity: int, sizes: list[int]
) -> None:
    assert warm_up_sizes([tensor("x", shape=(-1, 16))], most, capacity) == sizes


def test_rows_of_no_bytes_do_not_end_the_arithmetic() -> None:
    specs: Any = [tensor("x", shape=(-1, 0))]
    assert warm_up_sizes(specs, 8, 4096) == [8, 4, 1]
