"""What `headrace infer` makes of arguments, files and JSON, and how it shows a response."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Collection, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigurationError, InvalidRequest
from contracts.messages import ErrorDetail, Receipt, Response, Status
from contracts.names import ModelVersion
from contracts.specs import ModelSpec
from contracts.tensors import Tensor
from deploy.cli.inputs import Arrays, load_array, parse_inputs, parse_json, response_json, response_text
from deploy.cli.outputs_file import OutputsFile
from deploy.cli.per_row import Sending, ask_rows, rows_of
from producer.client import InferenceClient

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


@pytest.mark.parametrize("value", [[[1.5]], [[300]], [[-1]], [[float("nan")]]])
def test_numbers_are_not_made_others_to_fit_the_model(tmp_path: Path, value: list[list[float]]) -> None:
    small = spec({"name": "x", "datatype": "UINT8", "shape": [-1, 1]})
    np.save(tmp_path / "x.npy", np.array(value))
    for argument in (f"x={json.dumps(value)}", f"x=@{tmp_path / 'x.npy'}"):
        with pytest.raises(ConfigurationError, match=r"UINT8"):
            parse_inputs([argument], small)
    np.save(tmp_path / "x.npy", np.array([[2.0]]))
    for argument in ("x=[[2.0]]", f"x=@{tmp_path / 'x.npy'}"):
        array = np.asarray(parse_inputs([argument], small)["x"])
        assert array.dtype == np.uint8
        assert array.tolist() == [[2]]


def test_the_name_may_be_left_out_where_there_is_one_input() -> None:
    assert np.asarray(parse_inputs(["[[1, 2]]"], spec(_x))["x"]).shape == (1, 2)
    with pytest.raises(ConfigurationError, match="say which input it is"):
        parse_inputs(["[[1, 2]]"], spec(_x, _text))


def test_a_name_that_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigurationError, match="m@1 has no input 'y'; it takes x, text"):
        parse_inputs(["y=[[1, 2]]"], spec(_x, _text))


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
    "text",
    [
        "",
        "[1]",
        '{"inputs": [{"name": "x"}]}',
        '{"inputs": [{"name": "x", "shape": [3], "data": [1]}]}',
        '{"inputs": [], "parameters": ["top"]}',
    ],
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


def test_a_pattern_is_a_row_of_each_file_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    rows = np.asarray(parse_inputs([f"text=@{tmp_path}/*.txt"], spec(_text))["text"])
    assert rows.tolist() == [b"a.txt", b"b.txt"]
    with pytest.raises(ConfigurationError, match=r"there is no file .*\*\.png"):
        parse_inputs([f"text=@{tmp_path}/*.png"], spec(_text))


def test_a_file_whose_name_is_a_pattern_is_meant_itself(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    (tmp_path / "a1.txt").write_text("other")
    assert np.asarray(parse_inputs([f"text=@{tmp_path}/a[1].txt"], spec(_text))["text"]).tolist() == [b"one"]


def test_a_name_that_is_given_several_times_is_rows_behind_rows() -> None:
    rows = np.asarray(parse_inputs(["x=[[1, 2]]", "x=[[3, 4], [5, 6]]"], spec(_x))["x"])
    assert rows.tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(ConfigurationError, match="one behind the other"):
        parse_inputs(["x=[[1, 2]]", "x=[[3]]"], spec(_x))


def test_per_row_each_row_becomes_a_request() -> None:
    rows = rows_of({"x": [[1, 2], [3, 4]], "text": np.array([b"a", b"b"], object)})
    assert [np.asarray(row["x"]).tolist() for row in rows] == [[[1, 2]], [[3, 4]]]
    assert [np.asarray(row["text"]).tolist() for row in rows] == [[b"a"], [b"b"]]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": [[1, 2]], "y": [[1], [2]]}, "as many rows of every input: x has 1, y has 2"),
        ({"x": np.zeros((0, 2))}, "have no rows"),
        ({"x": 3}, "have no rows"),
    ],
)
def test_inputs_that_make_no_rows_are_refused(arrays: Arrays, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        rows_of(arrays)


def test_outputs_are_written_with_all_digits_and_nothing_that_differs_from_run_to_run(tmp_path: Path) -> None:
    scores = np.random.default_rng(1).random((2, 3), np.float32)
    answers = [_answer(name, scores + index) for name in "ab" for index in range(2)]
    with OutputsFile(str(tmp_path / "first.jsonl")) as first, OutputsFile(str(tmp_path / "second.jsonl")) as second:
        for index, answer in enumerate(answers):
            (first if index < 2 else second).add(answer)
    lines = (tmp_path / "first.jsonl").read_text().splitlines()
    assert (tmp_path / "second.jsonl").read_text().splitlines() == lines
    (found,) = json.loads(lines[0])["outputs"]
    assert np.array_equal(np.array(found["data"], np.float32).reshape(found["shape"]), scores)


def test_a_request_without_an_answer_leaves_its_error_in_the_file(tmp_path: Path) -> None:
    error = Response("a", Status.INVALID, "m", 1, error=ErrorDetail("no", retryable=False))
    with OutputsFile(str(tmp_path / "out.jsonl")) as file:
        file.add(error)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "status": "INVALID",
        "error": {"message": "no", "retryable": False},
    }


def test_a_file_that_cannot_be_written_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"nowhere/out\.jsonl cannot be written"),
        OutputsFile(str(tmp_path / "nowhere/out.jsonl")),
    ):
        raise AssertionError("not reached")


@pytest.mark.parametrize("is_answered", [False, True])
def test_what_a_file_had_stays_until_there_is_an_answer(tmp_path: Path, *, is_answered: bool) -> None:
    (tmp_path / "out.jsonl").write_text("of yesterday")
    with contextlib.suppress(InvalidRequest), OutputsFile(str(tmp_path / "out.jsonl")) as file:
        if not is_answered:
            raise InvalidRequest("nothing is asked after all")
        for number in range(2):
            file.add(_answer("a", np.full((1, 1), number, np.float32)))
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    if not is_answered:
        assert lines == ["of yesterday"]
    else:
        assert [json.loads(line)["outputs"][0]["data"] for line in lines] == [[0.0], [1.0]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_is_told_in_a_sentence() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"--output /dev/full cannot be written: No space left"),
        OutputsFile("/dev/full") as file,
    ):
        file.add(_answer("a", np.zeros((1, 1), np.float32)))


class Answering:
    """A client that answers rows with their own number, and refuses those that `refused` names."""

    def __init__(self, refused: Collection[int]) -> None:
        self.refused = refused
        self.is_left = False

    async def map(self, model: str, inputs: list[Arrays], **_: object) -> AsyncGenerator[Response, None]:
        try:
            for row, arrays in enumerate(inputs):
                if row in self.refused:
                    yield Response("", Status.INVALID, model, 1, error=ErrorDetail(f"not {row}", retryable=False))
                else:
                    yield _answer(str(row), np.asarray(arrays["x"], np.float32))
        finally:
            self.is_left = True


async def ask(client: Answering, rows: int, *, output: str = "", as_json: bool = False) -> None:
    sending = Sending(None, 1.0, "normal", 4)
    given = rows_of({"x": [[number] for number in range(rows)]})
    await ask_rows(
        cast("InferenceClient", client), ModelVersion("m", 1), given, sending, output=output, as_json=as_json
    )


async def test_rows_that_fail_are_named_up_to_a_few_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        await ask(Answering(range(1, 8)), 9)
    said = capsys.readouterr()
    assert ended.value.exit_code == 1
    assert said.err.splitlines() == [*(f"row {row}: INVALID: not {row}" for row in range(1, 6)), "2 more failed"]
    assert [line for line in said.out.splitlines() if line.startswith("row")] == ["row 0", "row 8"]
    assert said.out.splitlines()[-1].startswith("m@1 answered 2 of 9 rows in ")


async def test_each_row_is_a_line_of_json_whether_it_failed_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        await ask(Answering([1]), 3, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["OK", "INVALID", "OK"]


async def test_what_cannot_be_written_ends_the_asking() -> None:
    client = Answering([])
    with pytest.raises(ConfigurationError, match="--output /dev/full cannot be written"):
        await ask(client, 10_000, output="/dev/full")
    assert client.is_left


def _answer(name: str, scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Response:
    return Response(name, Status.OK, "m", 1, outputs=(Tensor.from_numpy("scores", scores),))
