"""What `headrace infer` makes of arguments, files and JSON, and how it shows a response."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigurationError
from contracts.messages import ErrorDetail, Receipt, Response, Status
from contracts.specs import ModelSpec
from contracts.tensors import Tensor
from deploy.cli.inputs import load_array, parse_inputs, parse_json, response_json, response_text

_x = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
_text = {"name": "text", "datatype": "BYTES", "shape": [-1]}


def spec(*inputs: Mapping[str, object]) -> ModelSpec:
    return ModelSpec.model_validate(
        {"name": "m", "version": 1, "backend": "onnx", "inputs": list(inputs), "outputs": [_x]}
    )


def test_a_value_gets_the_type_of_the_model() -> None:
    array = np.asarray(parse_inputs(["x=[[1, 2]]"], spec(_x))["x"])
    assert array.dtype == np.float32
    assert array.tolist() == [[1.0, 2.0]]


def test_the_name_may_be_left_out_where_there_is_one_input() -> None:
    assert np.asarray(parse_inputs(["[[1, 2]]"], spec(_x))["x"]).shape == (1, 2)
    with pytest.raises(ConfigurationError, match="say which input it is"):
        parse_inputs(["[[1, 2]]"], spec(_x, _text))


def test_a_file_is_read_and_brought_to_the_type_of_the_model(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([[1, 2]], np.uint8))
    array = np.asarray(parse_inputs([f"x=@{tmp_path / 'rows.npy'}"], spec(_x))["x"])
    assert array.dtype == np.float32


def test_a_file_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigurationError, match=r"evil\.npy cannot be read"):
        load_array(tmp_path / "evil.npy", None)


@pytest.mark.parametrize("text", ["x=[[1, 2", "x=[[1], [2, 3]]", 'x=[["a"]]', "x=@missing.npy"])
def test_a_value_that_is_none_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_inputs([text], spec(_x))


def test_texts_become_bytes() -> None:
    array = np.asarray(parse_inputs(['text=["a", "bc"]'], spec(_text))["text"])
    assert Tensor.from_numpy("text", array).datatype == "BYTES"


def test_json_may_have_the_form_of_the_open_inference_protocol() -> None:
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}],
        "parameters": {"top": 3},
    }
    arrays, parameters = parse_json(json.dumps(body), spec(_x))
    assert np.asarray(arrays["x"]).tolist() == [[1, 2], [3, 4]]
    assert parameters == {"top": 3}


def test_json_may_map_names_to_lists() -> None:
    arrays, parameters = parse_json('{"x": [[1, 2]]}', spec(_x))
    assert np.asarray(arrays["x"]).dtype == np.float32
    assert parameters == {}


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"inputs": [{"name": "x"}]}', '{"inputs": [{"name": "x", "shape": [3], "data": [1]}]}']
)
def test_json_that_is_no_request_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_json(text, spec(_x))


def response(*tensors: Tensor) -> Response:
    receipt = Receipt(
        worker="w-1", device="cpu", batch_rows=3, queued_us=100, batched_us=0, computed_us=400, total_us=1500
    )
    return Response("id-1", Status.OK, "m", 1, outputs=tensors, receipt=receipt)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_numbers_survive_the_way_to_json(values: list[float]) -> None:
    told = response_json(response(Tensor.from_numpy("y", np.array([values], np.float32))))
    again = json.loads(json.dumps(told))
    assert again["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, len(values)], "data": values}]
    assert again["receipt"]["total_us"] == 1500


def test_bytes_are_text_or_base64_in_json() -> None:
    told = response_json(response(Tensor.from_numpy("y", np.array(["ä", b"\xff\xfe"], dtype=object))))
    assert told["outputs"][0]["data"] == ["ä", "//4="]


def test_an_error_is_told_in_json() -> None:
    failed = Response("id-2", Status.INVALID, "m", 1, error=ErrorDetail("no such input"))
    told = response_json(failed)
    assert (told["status"], told["error"]) == ("INVALID", {"message": "no such input", "retryable": False})


def test_a_person_reads_outputs_and_where_the_time_went() -> None:
    text = response_text(response(Tensor.from_numpy("y", np.array([[1.0, 2.0]], np.float32))))
    assert "y  FP32 [1, 2]" in text
    assert "answered in 1.5 ms" in text
    assert "by w-1 on cpu, in a batch of 3" in text
