"""Tensors: bytes in, the same values out, and nothing that contradicts itself gets through."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contracts.errors import InvalidRequest
from contracts.tensors import DATATYPES, Ref, Tensor, check_tensor, element_offsets, pack_elements, unpack_elements

NUMBERS = st.sampled_from(["?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8"])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


@given(NUMBERS.flatmap(lambda dtype: hnp.arrays(np.dtype(dtype), SHAPES)))
def test_arrays_survive_the_round_trip(array: npt.NDArray[Any]) -> None:
    tensor = Tensor.from_numpy("x", array)
    assert check_tensor(tensor) is None
    again = tensor.to_numpy()
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


@given(st.lists(st.one_of(st.binary(max_size=20), st.text(max_size=20)), max_size=12))
def test_byte_elements_survive_the_round_trip(elements: list[bytes | str]) -> None:
    packed = pack_elements(elements)
    assert unpack_elements(packed) == [one.encode() if isinstance(one, str) else one for one in elements]


def test_strings_become_bytes_tensors() -> None:
    tensor = Tensor.from_numpy("text", np.array([["ä", "bc"], ["", "d"]]))
    assert tensor.datatype == "BYTES"
    assert tensor.to_numpy().tolist() == [["ä".encode(), b"bc"], [b"", b"d"]]


def test_big_endian_and_strided_arrays_are_sent_as_what_they_mean() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    assert Tensor.from_numpy("x", array).to_numpy().tolist() == array.tolist()


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.zeros((2, 3), np.float32)
    tensor = Tensor.from_numpy("x", array)
    array[0, 0] = 7
    assert tensor.to_numpy()[0, 0] == 7


@pytest.mark.parametrize("array", [np.zeros(2, np.complex64), np.zeros(2, "datetime64[s]")])
def test_types_without_a_datatype_are_refused_with_the_way_out(array: npt.NDArray[Any]) -> None:
    with pytest.raises(InvalidRequest, match="convert to one of"):
        Tensor.from_numpy("x", array)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor("x", "FP33", (1,), memoryview(b"")), "unknown datatype"),
        (Tensor("x", "FP32", (1,) * 9, memoryview(b"\0\0\0\0")), "9 dimensions"),
        (Tensor("x", "FP32", (-1, -1), memoryview(b"\0\0\0\0")), "negative"),
        (Tensor("x", "FP32", (2**40, 2**40), memoryview(b"")), "needs"),
        (Tensor("x", "FP32", (0, 2**62), memoryview(b"\0")), "carries 1"),
        (Tensor("x", "BYTES", (2**50,), memoryview(b"\0" * 8)), "shorter than"),
        (Tensor("x", "BYTES", (1,), memoryview(b"\xff\xff\xff\xff")), "exactly 1 whole"),
        (Tensor("x", "BYTES", (1,), memoryview(b"\0\0\0\0\0\0\0\0")), "exactly 1 whole"),
    ],
)
def test_contradictions_are_named(tensor: Tensor, words: str) -> None:
    assert words in (check_tensor(tensor) or "")
    with pytest.raises(InvalidRequest, match=words):
        tensor.to_numpy()


@given(st.sampled_from([*DATATYPES, "?"]), st.lists(st.integers(-3, 2**63), max_size=10), st.binary(max_size=40))
def test_no_combination_of_fields_breaks_the_check(datatype: str, shape: list[int], data: bytes) -> None:
    tensor = Tensor("x", datatype, tuple(shape), memoryview(data))
    if check_tensor(tensor) is None:
        assert tensor.to_numpy().shape == tuple(shape)


def test_element_offsets_cut_a_batch_into_its_requests() -> None:
    data = pack_elements([b"a", b"", b"ccc", b"dd"])
    offsets = element_offsets(data, [1, 3])
    assert offsets == [0, 5, len(data)]
    assert unpack_elements(data[offsets[1] : offsets[2]]) == [b"", b"ccc", b"dd"]


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", (4,)), ("BYTES", (2,))])
def test_a_reference_is_no_array_before_its_bytes_were_read(datatype: str, shape: tuple[int, ...]) -> None:
    stored = Tensor("x", datatype, shape, ref=Ref("0" * 64, 16))
    assert check_tensor(stored) is None
    with pytest.raises(InvalidRequest, match="'x' is a reference to 16 bytes, which were not read"):
        stored.to_numpy()
