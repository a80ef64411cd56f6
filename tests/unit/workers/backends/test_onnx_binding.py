"""Bound runs against plain ones of the same session, on the CPU provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.specs import ModelSpec
from tests.engine_process import MODELS, spec_in
from workers.backends.base import Arrays, ModelContext

pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
from workers.backends.onnx import OnnxBackend
from workers.backends.onnx_binding import BoundSession, resolved, symbols_of

onnxruntime: Any = pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx", reason="the models are written with the package onnx")

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
Side = Sequence[tuple[str, int, Sequence[int | str | None]]]


def session_of(nodes: Sequence[Any], inputs: Side, outputs: Side) -> Any:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])


def node(kind: str, inputs: str, output: str) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), [output])


def assert_same(got: Arrays, want: Arrays) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@pytest.fixture
def mixed() -> Any:
    """One output whose shape is known beforehand, and one that depends on what is in the input."""
    return session_of(
        [node("NonZero", "x", "where"), node("Add", "x y", "sum")],
        [("x", FLOAT, ["n", "m"]), ("y", FLOAT, ["n", "m"])],
        [("where", INT64, [2, "found"]), ("sum", FLOAT, ["n", "m"])],
    )


def bound(session: Any) -> BoundSession:
    return BoundSession(session, {"sum": np.dtype(np.float32), "where": np.dtype(np.int64)})


def batch(rows: int, columns: int, seed: int = 0) -> Arrays:
    dice = np.random.default_rng(seed)
    x = dice.integers(0, 2, (rows, columns)).astype(np.float32)
    return {"x": x, "y": dice.standard_normal((rows, columns)).astype(np.float32)}


def test_batches_of_changing_shapes_are_answered_as_by_a_plain_run(mixed: Any) -> None:
    run = bound(mixed)
    for seed, shape in enumerate([(3, 2), (1, 7), (0, 4), (16, 5), (3, 2), (2, 0), (3, 2)]):
        inputs = batch(*shape, seed)
        want = dict(zip(("sum", "where"), mixed.run(["sum", "where"], inputs), strict=True))
        assert_same(run.run(inputs), want)


def test_inputs_are_read_where_they_stand_and_need_not_be_dense(mixed: Any) -> None:
    memory, run = bytearray(4096), bound(mixed)
    views = {"x": np.ndarray((4, 3), np.float32, memory, 64), "y": np.ndarray((4, 3), np.float32, memory, 1024)}
    for seed in range(3):
        inputs = batch(4, 3, seed)
        for name, view in views.items():
            np.copyto(view, inputs[name])
        np.testing.assert_array_equal(run.run(views)["sum"], inputs["x"] + inputs["y"])
    sparse = {name: array[::2, ::-1] for name, array in batch(6, 3).items()}
    np.testing.assert_array_equal(run.run(sparse)["sum"], sparse["x"] + sparse["y"])


def test_a_missing_input_is_not_taken_from_the_batch_before(mixed: Any) -> None:
    run = bound(mixed)
    run.run(batch(3, 2))
    with pytest.raises(KeyError, match="y"):
        run.run({"x": np.ones((3, 2), np.float32)})


def test_an_output_of_known_shape_is_written_into_the_same_memory_again(mixed: Any) -> None:
    run = bound(mixed)
    first = run.run(batch(4, 2))["sum"]
    assert np.shares_memory(first, run.run(batch(2, 2))["sum"])


def test_a_graph_that_claims_a_wrong_symbol_is_answered_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    twice = onnx.helper.make_node("Concat", ["x", "x"], ["twice"], axis=0)
    session = session_of([twice], [("x", FLOAT, ["n", 2])], [("twice", FLOAT, ["n", 2])])
    run = BoundSession(session, {"twice": np.dtype(np.float32)})
    for rows in (3, 1):
        x = np.ones((rows, 2), np.float32)
        assert run.run({"x": x})["twice"].shape == (2 * rows, 2)
    assert caplog.text.count("not bound any more") == 1


def test_a_batch_that_fails_leaves_the_next_one_alone(mixed: Any) -> None:
    run = bound(mixed)
    with pytest.raises(RuntimeError, match="input data type"):
        run.run({"x": np.ones((1, 2), np.int64), "y": np.ones((1, 2), np.float32)})
    assert run.run(batch(1, 2))["sum"].shape == (1, 2)


def test_a_shape_is_known_when_all_its_symbols_are() -> None:
    symbols = symbols_of({"x": ["n", 3, None]}, {"x": np.zeros((5, 3, 2))})
    assert symbols == {"n": 5}
    assert resolved(["n", 3], symbols) == (5, 3)
    assert resolved([0, "n"], symbols) == (0, 5)
    unknowns: list[list[int | str | None]] = [["m", 3], ["n", None], [], ["n", ""]]
    for unknown in unknowns:
        assert resolved(unknown, symbols) is None


def test_the_backend_binds_when_it_is_told_to_but_never_texts(tmp_path: Path) -> None:
    folder = MODELS / "digits" / "1"
    inputs = {"image": np.random.default_rng(0).random((5, 64), np.float32)}
    plain, binding = OnnxBackend(), OnnxBackend(binds=True)
    for backend in (plain, binding):
        backend.load(ModelContext(spec_in(folder), folder))
    assert_same(binding.infer(dict(inputs), 5, {}), plain.infer(dict(inputs), 5, {}))
    assert (plain._bound is None, binding._bound is None) == (True, False)
    string = onnx.TensorProto.STRING
    helper = onnx.helper
    graph = helper.make_graph(
        [node("Identity", "text", "same")],
        "echo",
        [helper.make_tensor_value_info("text", string, ["n"])],
        [helper.make_tensor_value_info("same", string, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    sides = {
        side: [{"name": name, "datatype": "BYTES", "shape": [-1]}]
        for side, name in (("inputs", "text"), ("outputs", "same"))
    }
    echo = OnnxBackend(binds=True)
    echo.load(ModelContext(ModelSpec.model_validate({"name": "e", "version": 1, "backend": "onnx"} | sides), tmp_path))
    assert echo.infer({"text": np.array([b"a"], object)}, 1, {})["same"].tolist() == ["a"]
    assert echo._bound is None
