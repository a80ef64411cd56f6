"""Validation: what does not fit its model never reaches a batch, and the message says what to change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import InvalidRequest
from contracts.messages import Parameters, RequestBody, Scalar
from contracts.serving_specs import BatchingSpec
from contracts.specs import ModelSpec, TensorSpec
from contracts.tensors import Tensor
from workers.ingest.validate import Validator

SPEC = ModelSpec(
    name="m",
    version=1,
    backend="onnx",
    inputs=(TensorSpec(name="a", datatype="FP32", shape=(-1, 4)), TensorSpec(name="b", datatype="INT64", shape=(-1,))),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    batching=BatchingSpec(max_batch_size=8),
    nan="reject",
)


def body(**arrays: np.ndarray) -> RequestBody:
    return RequestBody(tuple(Tensor.from_numpy(name, array) for name, array in arrays.items()))


def good(rows: int = 2) -> dict[str, np.ndarray]:
    return {"a": np.ones((rows, 4), np.float32), "b": np.arange(rows)}


def test_a_request_that_fits_comes_back_in_the_order_of_the_spec() -> None:
    arrays = good()
    checked = Validator(SPEC).check(body(b=arrays["b"], a=arrays["a"]))
    assert [tensor.name for tensor in checked.inputs] == ["a", "b"]
    assert checked.rows == 2
    assert checked.batch_key is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": np.ones((2, 5), np.float32)}, "must have shape"),
        ({"a": np.ones((2, 4, 1), np.float32)}, "must have shape"),
        ({"a": np.ones((2, 4), np.float64)}, "must be FP32, not FP64"),
        ({"b": np.arange(3)}, "has 3 rows, 'a' has 2"),
        ({"a": np.full((2, 4), np.nan, np.float32)}, "NaN or infinite"),
        ({"c": np.arange(2)}, r"unknown or repeated \['c'\]"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Validator(SPEC).check(body(**(good() | change)))


@pytest.mark.parametrize(
    ("rows", "most", "words"),
    [
        (0, 8, "0 rows; {} takes 1 to 8 in a request"),
        (
            9,
            8,
            "9 rows; {} takes 1 to 8 in a request: make a request of each row (headrace infer --per-row, client.map)",
        ),
        (
            2,
            1,
            "2 rows; {} takes 1 row in a request: make a request of each row (headrace infer --per-row, client.map)",
        ),
    ],
)
def test_the_number_of_rows_is_bounded(rows: int, most: int, words: str) -> None:
    spec = SPEC.model_copy(update={"batching": BatchingSpec(max_batch_size=most)})
    with pytest.raises(InvalidRequest) as refused:
        Validator(spec).check(body(**good(rows)))
    assert str(refused.value) == words.format(SPEC.key)


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"missing \['b'\]"):
        Validator(SPEC).check(body(a=np.ones((1, 4), np.float32)))


def test_a_shape_that_lies_about_its_bytes_is_refused() -> None:
    lying = Tensor("a", "FP32", (2, 4), memoryview(b"\0" * 16))
    rows = Tensor.from_numpy("b", np.arange(2))
    with pytest.raises(InvalidRequest, match="needs 32 bytes but carries 16"):
        Validator(SPEC).check(RequestBody((lying, rows)))


@given(
    st.lists(st.integers(-(2**62), 2**62), max_size=9), st.binary(max_size=64), st.sampled_from(["FP32", "BYTES", "X"])
)
def test_no_shape_however_absurd_gets_through_or_costs_time(shape: list[int], data: bytes, datatype: str) -> None:
    tensor = Tensor("a", datatype, tuple(shape), memoryview(data))
    with pytest.raises(InvalidRequest):
        Validator(SPEC).check(RequestBody((tensor, Tensor.from_numpy("b", np.arange(3)))))


def test_rows_of_open_dimensions_share_a_batch_only_when_their_shapes_agree() -> None:
    spec = SPEC.model_copy(update={"inputs": (TensorSpec(name="ids", datatype="INT64", shape=(-1, -1)),)})
    validator = Validator(spec)
    keys = [validator.check(body(ids=np.zeros((1, length), np.int64))).batch_key for length in (3, 3, 5)]
    assert keys[0] == keys[1] != keys[2]


def test_requests_with_different_parameters_do_not_share_a_batch() -> None:
    plain = body(**good())
    validator = Validator(SPEC)
    variants: tuple[Parameters, ...] = ({}, {"k": 1}, {"k": 2})
    keys = [validator.check(RequestBody(plain.inputs, parameters)).batch_key for parameters in variants]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("values", [(1, True, 1.0, "1"), (0.0, -0.0, 0, False), (None, "None", "")])
def test_parameters_that_python_takes_for_equal_do_not_share_a_batch(values: tuple[Scalar, ...]) -> None:
    plain = body(**good())
    keys = [Validator(SPEC).check(RequestBody(plain.inputs, {"k": value})).batch_key for value in values]
    assert len(set(keys)) == len(values)


@given(st.dictionaries(st.text(max_size=4), st.none() | st.booleans() | st.integers() | st.floats() | st.text()))
def test_the_same_parameters_share_a_batch_in_whatever_order_they_come(parameters: Parameters) -> None:
    plain, backwards = body(**good()), dict(reversed([*parameters.items()]))
    keys = [Validator(SPEC).check(RequestBody(plain.inputs, each)).batch_key for each in (parameters, backwards)]
    assert keys[0] == keys[1]
