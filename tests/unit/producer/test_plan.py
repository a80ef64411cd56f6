from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contracts.codec import decode_request
from contracts.errors import InvalidRequest
from contracts.names import ModelVersion
from contracts.partitioner import Partitioner
from contracts.specs import ModelSpec, TensorSpec
from contracts.tensors import Tensor
from producer.plan import ModelPlan

KEY = ModelVersion("m", 1)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),)


def make_plan(*inputs: tuple[str, str, tuple[int, ...]], known: bool = True) -> ModelPlan:
    specs = tuple(TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in inputs)
    spec = ModelSpec(name="m", version=1, backend="onnx", inputs=specs, outputs=OUTPUTS) if known else None
    return ModelPlan(KEY, "t", Partitioner(1, first=0, longest_run=1), spec.request_inputs if spec else None)


IMAGE = ("image", "FP32", (-1, 4))


def roundtrip(plan: ModelPlan, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
    body = decode_request(plan.encode(inputs, None))
    return {tensor.name: tensor.to_numpy() for tensor in body.inputs}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(8, dtype=np.float32).reshape(2, 4),
        np.asfortranarray(np.arange(8, dtype=np.float32).reshape(2, 4)),
        np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::2],
        np.arange(8, dtype=">f4").reshape(2, 4),
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[0.5, 1.5, 2.5, 3.5]],
    ],
    ids=["plain", "column by column", "every second", "big-endian", "list of ints", "list of floats"],
)
def test_arrays_of_any_layout_and_lists_arrive_with_their_values(array: Any) -> None:
    np.testing.assert_array_equal(roundtrip(make_plan(IMAGE), {"image": array})["image"], np.asarray(array))


def test_tensors_that_are_ready_travel_as_they_are() -> None:
    tensor = Tensor.from_numpy("image", np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(roundtrip(make_plan(IMAGE), [tensor])["image"], np.ones((1, 4)))


def test_strings_become_bytes_elements() -> None:
    plan = make_plan(("text", "BYTES", (-1, 1)))
    found = roundtrip(plan, {"text": [["grün"], ["b"]]})["text"]
    assert found.tolist() == [["grün".encode()], [b"b"]]


def test_bf16_takes_raw_bit_patterns() -> None:
    plan = make_plan(("x", "BF16", (-1, 2)))
    found = decode_request(plan.encode({"x": np.array([[1, 2]], np.uint16)}, None)).inputs[0]
    assert (found.datatype, found.shape) == ("BF16", (1, 2))


def test_open_dimensions_take_any_size() -> None:
    plan = make_plan(("ids", "INT64", (-1, -1)))
    assert roundtrip(plan, {"ids": np.zeros((2, 7), np.int64)})["ids"].shape == (2, 7)


def test_a_model_whose_signature_is_unknown_is_sent_whatever_the_caller_has() -> None:
    plan = make_plan(IMAGE, known=False)
    assert roundtrip(plan, {"anything": np.zeros((1, 9), np.int8)})["anything"].dtype == np.int8


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "lacks the inputs image"),
        ([], "lacks the inputs image"),
        ({"picture": np.zeros((1, 4), np.float32)}, "no input 'picture'; it takes image"),
        ({"image": np.zeros((1, 4))}, r"FP64, the model takes FP32; convert it with \.astype\(np\.float32\)"),
        ({"image": np.zeros((1, 4), np.int32)}, "INT32, the model takes FP32"),
        ({"image": np.zeros((1, 5), np.float32)}, r"shape \[1, 5\]; it must be \['any', 4\]"),
        ({"image": np.zeros(4, np.float32)}, r"shape \[4\]"),
        ({"image": np.float32(1)}, r"shape \[\]"),
        ({"image": np.zeros((1, 4), np.complex64)}, "cannot be sent"),
        ({"image": "a picture"}, "cannot be made an array of FP32"),
        ({"image": [[1, 2], [3]]}, "cannot be made an array of FP32"),
        ({"image": np.zeros((20_000, 4), np.float32)}, "320,000 bytes"),
        ([Tensor("image", "FP32", (1, 4), memoryview(b"short"))], "needs 16 bytes but carries 5"),
        ([Tensor("image", "FP32", (10**9, 4), memoryview(b""))], "needs 16000000000 bytes"),
        ([Tensor("image", "WAT", (1,), memoryview(b""))], "unknown datatype"),
        ([Tensor("image", "FP64", (1, 4), memoryview(bytes(32)))], "FP64, the model takes FP32"),
    ],
)
def test_what_the_model_would_refuse_is_refused_here(inputs: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make_plan(IMAGE).encode(inputs, None)


def test_inputs_must_agree_about_the_number_of_rows() -> None:
    plan = make_plan(("a", "FP32", (-1, 1)), ("b", "FP32", (-1, 1)))
    with pytest.raises(InvalidRequest, match="equally many rows"):
        plan.encode({"a": np.zeros((1, 1), np.float32), "b": np.zeros((2, 1), np.float32)}, None)


def test_an_input_may_be_named_once() -> None:
    tensor = Tensor.from_numpy("image", np.ones((1, 4), np.float32))
    with pytest.raises(InvalidRequest, match="names an input twice"):
        make_plan(IMAGE).encode([tensor, tensor], None)


def test_a_request_without_inputs_is_refused_whatever_the_model_takes() -> None:
    with pytest.raises(InvalidRequest, match="at least one input"):
        make_plan(IMAGE, known=False).encode({}, None)


def test_lists_for_bf16_are_bit_patterns_too() -> None:
    found = decode_request(make_plan(("x", "BF16", (-1, 2))).encode({"x": [[1, 2]]}, None)).inputs[0]
    assert (found.datatype, bytes(found.data)) == ("BF16", b"\x01\x00\x02\x00")


def test_naming_one_input_twice_does_not_stand_for_another() -> None:
    plan = make_plan(("a", "FP32", (-1, 1)), ("b", "FP32", (-1, 1)))
    tensor = Tensor.from_numpy("a", np.ones((1, 1), np.float32))
    with pytest.raises(InvalidRequest, match="lacks the inputs b"):
        plan.encode([tensor, tensor], None)


def test_parameters_travel_and_must_be_scalars() -> None:
    plan, row = make_plan(IMAGE), {"image": np.zeros((1, 4), np.float32)}
    body = decode_request(plan.encode(row, {"top_k": 3, "name": "x", "flag": True}))
    assert body.parameters == {"top_k": 3, "name": "x", "flag": True}
    for wrong in (object(), [1], {"a": 1}, 2**70):
        with pytest.raises(InvalidRequest, match="parameters"):
            plan.encode(row, {"bad": wrong})  # type: ignore[dict-item]  # that is the point
