from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import ModelLoadError
from contracts.specs import ModelSpec, TensorSpec
from tests.engine_process import MODELS, spec_in
from workers.backends.base import ModelContext
from workers.backends.device_faults import DeviceLost

pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
from workers.backends.onnx import OnnxBackend, signature_faults


@dataclass(frozen=True)
class GraphTensor:
    """As ONNX Runtime describes an input or an output."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def spec_of(name: str, datatype: str = "FP32", shape: Sequence[int] = (-1, 4)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=tuple(shape))


X, Y = GraphTensor("x", "tensor(float)", ["n", 4]), GraphTensor("y", "tensor(float)", ["n", 4])


def faults(
    *, inputs: Sequence[TensorSpec] = (spec_of("x"),), outputs: Sequence[TensorSpec] = (spec_of("y"),), **graph: Any
) -> str:
    return "; ".join(signature_faults(inputs, outputs, graph.get("takes", [X]), graph.get("gives", [Y])))


def test_a_spec_that_repeats_the_graph_has_no_fault() -> None:
    assert not faults()


def test_the_spec_may_fix_a_size_that_the_graph_leaves_open() -> None:
    assert not faults(
        takes=[GraphTensor("x", "tensor(float)", ["n", None])], gives=[GraphTensor("y", "tensor(float)", ["n", "m"])]
    )


def test_an_output_may_be_declared_more_loosely_than_the_graph_gives_it() -> None:
    assert not faults(outputs=[spec_of("y", shape=[-1, -1])])


def test_outputs_that_nobody_asks_for_and_unknown_ranks_are_no_fault() -> None:
    assert not faults(gives=[GraphTensor("y", "tensor(float)", []), GraphTensor("z", "tensor(float)", ["n"])])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": [spec_of("image")]}, "there is no input 'image': the graph takes 'x'"),
        (
            {"takes": [X, GraphTensor("mask", "tensor(bool)", ["n"])]},
            "the graph takes 'mask': declare it under inputs:",
        ),
        ({"outputs": [spec_of("scores")]}, "there is no output 'scores': the graph gives 'y'"),
        ({"inputs": [spec_of("x", "FP64")]}, "input 'x' is declared FP64, but the graph takes FP32"),
        ({"outputs": [spec_of("y", "INT64")]}, "output 'y' is declared INT64, but the graph gives FP32"),
        ({"inputs": [spec_of("x", shape=[-1, 5])]}, "input 'x' is declared [-1, 5], but the graph takes [-1, 4]"),
        ({"inputs": [spec_of("x", shape=[-1, -1])]}, "input 'x' is declared [-1, -1], but the graph takes [-1, 4]"),
        ({"inputs": [spec_of("x", shape=[-1, 4, 1])]}, "input 'x' is declared [-1, 4, 1], but the graph takes [-1, 4]"),
        ({"outputs": [spec_of("y", shape=[-1, 5])]}, "output 'y' is declared [-1, 5], but the graph gives [-1, 4]"),
        ({"takes": [GraphTensor("x", "tensor(float)", [1, 4])]}, "input 'x' has a fixed batch of 1: export the graph"),
        ({"gives": [GraphTensor("y", "tensor(float)", [8, 4])]}, "output 'y' has a fixed batch of 8: export the graph"),
        (
            {"takes": [GraphTensor("x", "tensor(bfloat16)", ["n", 4])]},
            "'x' is of tensor(bfloat16), which cannot be sent",
        ),
        ({"gives": [GraphTensor("y", "seq(map(int64,tensor(float)))", [])]}, "'y' is of seq(map(int64,tensor(float)))"),
    ],
)
def test_each_contradiction_is_named_with_both_sides(changes: dict[str, Any], words: str) -> None:
    assert words in faults(**changes)


def test_all_contradictions_are_named_at_once() -> None:
    assert faults(inputs=[spec_of("x", "FP64")], outputs=[spec_of("z")]).count(";") == 1


def loaded(folder: Path, spec: ModelSpec | None = None, **context: Any) -> OnnxBackend:
    backend = OnnxBackend()
    backend.load(ModelContext(spec or spec_in(folder), folder, **context))
    return backend


@pytest.mark.parametrize("version", [1, 2])
def test_the_digit_models_load_and_answer_probabilities(version: int) -> None:
    backend = loaded(MODELS / "digits" / str(version))
    scores = backend.infer({"image": np.zeros((3, 64), np.float32)}, 3, {})["scores"]
    assert scores.shape == (3, 10)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_a_spec_that_contradicts_the_file_is_refused_at_load() -> None:
    folder = MODELS / "digits" / "1"
    spec = spec_in(folder).model_copy(update={"inputs": (spec_of("image", shape=[-1, 63]),)})
    with pytest.raises(ModelLoadError, match=r"digits@1: .*model.onnx contradict.*\[-1, 63\].*\[-1, 64\]"):
        loaded(folder, spec)


def test_without_the_cuda_provider_a_gpu_lease_is_refused_unless_the_spec_asks_for_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    folder = MODELS / "digits" / "1"
    with pytest.raises(ModelLoadError, match="digits@1: the lease has a GPU, but this ONNX Runtime has no CUDA"):
        loaded(folder, device="cuda:0")
    knowingly = ModelSpec.model_validate(spec_in(folder).model_dump() | {"onnx": {"provider": "cpu"}})
    assert loaded(folder, knowingly, device="cuda:0").device == "cpu"
    assert "GPU is not used" in caplog.text


@pytest.mark.gpu
def test_on_a_gpu_the_cuda_provider_answers_like_the_cpu() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    folder = MODELS / "digits" / "1"
    inputs = {"image": np.random.default_rng(0).random((5, 64), np.float32)}
    on_gpu, on_cpu = loaded(folder, device="cuda:0"), loaded(folder)
    assert on_gpu.device == "cuda:0"
    for _ in range(2):
        scores = on_gpu.infer(dict(inputs), 5, {})["scores"]
        np.testing.assert_allclose(scores, on_cpu.infer(dict(inputs), 5, {})["scores"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("location", ["../weights", "link", "{parent}/weights"])
def test_weights_outside_the_versions_folder_are_refused(location: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the model is written with the package onnx")
    helper, types, folder = onnx.helper, onnx.TensorProto, tmp_path / "1"
    folder.mkdir()
    (tmp_path / "weights").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "weights")
    weights = onnx.TensorProto(name="w", data_type=types.FLOAT, dims=[4], data_location=types.EXTERNAL)
    weights.external_data.add(key="location", value=location.format(parent=tmp_path))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "outside",
        [helper.make_tensor_value_info("x", types.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", types.FLOAT, ["n", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    sides = {
        side: [{"name": name, "datatype": "FP32", "shape": [-1, 4]}]
        for side, name in (("inputs", "x"), ("outputs", "y"))
    }
    with pytest.raises(ModelLoadError, match="External data path"):
        loaded(folder, ModelSpec.model_validate({"name": "outside", "version": 1, "backend": "onnx"} | sides))


@pytest.fixture
def echo(tmp_path: Path) -> OnnxBackend:
    onnx = pytest.importorskip("onnx", reason="the model is written with the package onnx")
    helper, string = onnx.helper, onnx.TensorProto.STRING
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["same"])],
        "echo",
        [helper.make_tensor_value_info("text", string, ["n", 2])],
        [helper.make_tensor_value_info("same", string, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    sides = {
        side: [{"name": name, "datatype": "BYTES", "shape": [-1, 2]}]
        for side, name in (("inputs", "text"), ("outputs", "same"))
    }
    return loaded(tmp_path, ModelSpec.model_validate({"name": "echo", "version": 1, "backend": "onnx"} | sides))


def test_bytes_are_strings_to_the_graph_not_their_python_notation(echo: OnnxBackend) -> None:
    text = np.array([["grün".encode(), b""], [b"plain", "\U0001f40d".encode()]], dtype=object)
    assert echo.infer({"text": text}, 2, {})["same"].tolist() == [["grün", ""], ["plain", "\U0001f40d"]]


def test_bytes_that_are_no_text_fail_the_batch_by_name(echo: OnnxBackend) -> None:
    with pytest.raises(ValueError, match="'text' holds bytes that are not UTF-8"):
        echo.infer({"text": np.array([[b"\xff\xfe", b""]], dtype=object)}, 1, {})


def test_a_failed_allocation_is_a_memory_error() -> None:
    class Session:
        def run(self, *_: object) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9")

    backend = OnnxBackend()
    backend._session = Session()
    with pytest.raises(MemoryError, match="of size 9"):
        backend.infer({}, 1, {})


def test_a_fault_that_ends_the_device_for_this_process_is_told_apart() -> None:
    class Session:
        def run(self, *_: object) -> None:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")

    backend = OnnxBackend()
    backend._session = Session()
    with pytest.raises(DeviceLost, match="illegal memory access"):
        backend.infer({}, 1, {})
