"""One suite for every backend: what the engine relies on, whichever library runs the model.

Each backend brings the same little model in its own format: `sum` = a + b, `twice` = 2 b, row by row. Those that can
yield bring the same stream: a + b, a + 2 b and so on, for rows that are still wanted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import ModelLoadError
from contracts.specs import ModelSpec
from workers.backends import new_backend
from workers.backends.base import Arrays, Backend, ModelContext
from workers.engine.exchange import OutputRegions

INPUTS = [
    {"name": "a", "datatype": "FP32", "shape": [-1, 3]},
    {"name": "b", "datatype": "INT64", "shape": [-1, 1]},
]
OUTPUTS = [
    {"name": "sum", "datatype": "FP32", "shape": [-1, 3]},
    {"name": "twice", "datatype": "INT64", "shape": [-1, 1]},
]

HANDLER = """
import numpy as np

class Model:
    def infer(self, inputs):
        a, b = inputs["a"], inputs["b"]
        return {"sum": a + b.astype(np.float32), "twice": 2 * b}
"""


def write_python(path: Path) -> None:
    path.write_text(HANDLER)


def write_onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the model is written with the package onnx")
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["b"], ["b32"], to=types.FLOAT),
            helper.make_node("Add", ["a", "b32"], ["sum"]),
            helper.make_node("Add", ["b", "b"], ["twice"]),
        ],
        "affine",
        [
            helper.make_tensor_value_info("a", types.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("b", types.INT64, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("sum", types.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("twice", types.INT64, ["n", 1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def write_torch(path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: the extra 'torch'")

    class Affine(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is optional here
        def forward(self, a: Any, b: Any) -> Any:
            return a + b.to(a.dtype), 2 * b

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still what many models are
        torch.jit.save(torch.jit.trace(Affine(), (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64))), path)


STREAMING_HANDLER = """
import numpy as np

class Model:
    def infer(self, inputs):
        total, b = inputs["a"], inputs["b"].astype(np.float32)
        gone = frozenset()
        for step in range(3):
            total = total + b
            left = [row for row in range(len(total)) if row not in gone]
            gone = yield {"sum": total[left]}, left, step == 1 and len(left) == 1
        return {"sum": total}
"""
STREAMING_MODULE = """
import torch

class Model(torch.nn.Module):
    def forward(self, a, b):
        total, gone = a, frozenset()
        for step in range(3):
            total = total + b
            assert torch.is_inference_mode_enabled()
            left = [row for row in range(len(total)) if row not in gone]
            gone = yield {"sum": total[left]}, left, step == 1 and len(left) == 1
        return total
"""


def write_python_stream(folder: Path) -> dict[str, str]:
    (folder / "model.py").write_text(STREAMING_HANDLER)
    return {}


def write_torch_stream(folder: Path) -> dict[str, str]:
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed: the extra 'torch'")
    (folder / "yields.py").write_text(STREAMING_MODULE)
    safetensors.save_file({}, folder / "model.safetensors")
    return {"handler": "yields:Model"}


@dataclass(frozen=True)
class Kit:
    """How one backend gets its model."""

    backend: Any
    write: Callable[[Path], None]
    package: str

    streams: Callable[[Path], dict[str, str]] | None = None
    """Writes the model that yields, and says what its spec has besides."""

    def context(self, folder: Path, **fields: Any) -> ModelContext:
        spec = {"name": "affine", "version": 1, "backend": self.backend, "inputs": INPUTS, "outputs": OUTPUTS} | fields
        return ModelContext(ModelSpec.model_validate(spec), folder)

    def new(self) -> Backend:
        pytest.importorskip(self.package, reason=f"{self.package} is not installed")
        return new_backend(self.backend)


KITS = [
    Kit("python", write_python, "numpy", write_python_stream),
    Kit("onnx", write_onnx, "onnxruntime"),
    Kit("torch", write_torch, "torch", write_torch_stream),
]


@pytest.fixture(params=KITS, ids=lambda kit: kit.backend)
def kit(request: pytest.FixtureRequest) -> Kit:
    assert isinstance(request.param, Kit)
    return request.param


@pytest.fixture
def context(kit: Kit, tmp_path: Path) -> ModelContext:
    context = kit.context(tmp_path)
    kit.write(tmp_path / context.spec.artefact_name)
    return context


@pytest.fixture
def backend(kit: Kit, context: ModelContext) -> Iterator[Backend]:
    backend = kit.new()
    backend.load(context)
    yield backend
    backend.close()


def batch_of(rows: int, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "a": random.standard_normal((rows, 3)).astype(np.float32),
        "b": random.integers(-(2**20), 2**20, (rows, 1)),
    }


def expected_of(inputs: Arrays) -> Arrays:
    return {"sum": inputs["a"] + inputs["b"].astype(np.float32), "twice": 2 * inputs["b"]}


def assert_same(got: Arrays, want: Arrays) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_batch_of_any_size_is_answered_by_name_with_the_declared_types(backend: Backend, rows: int) -> None:
    inputs = batch_of(rows)
    assert_same(backend.infer(dict(inputs), rows, {}), expected_of(inputs))


def test_the_answer_passes_the_check_that_the_engine_makes(backend: Backend, context: ModelContext) -> None:
    regions, _ = OutputRegions(context.spec.outputs, 4096).place(backend.infer(batch_of(5), 5, {}), 5)
    assert [region.name for region in regions] == ["sum", "twice"]


def test_inputs_may_come_in_any_order(backend: Backend) -> None:
    inputs = batch_of(3)
    assert_same(backend.infer(dict(reversed(inputs.items())), 3, {}), expected_of(inputs))


def test_a_row_has_the_same_answer_alone_as_among_others(backend: Backend) -> None:
    inputs = batch_of(6)
    together = {name: array.copy() for name, array in backend.infer(dict(inputs), 6, {}).items()}
    for row in range(6):
        alone = backend.infer({name: array[row : row + 1] for name, array in inputs.items()}, 1, {})
        assert_same(alone, {name: array[row : row + 1] for name, array in together.items()})


def test_inputs_may_stand_in_memory_that_is_overwritten_after_the_answer(backend: Backend) -> None:
    memory = bytearray(4096)
    views = {
        "a": np.ndarray((4, 3), np.float32, memory, 64),
        "b": np.ndarray((4, 1), np.int64, memory, 1024),
    }
    for seed in range(3):
        inputs = batch_of(4, seed)
        for name, view in views.items():
            np.copyto(view, inputs[name])
        assert_same(backend.infer(dict(views), 4, {}), expected_of(inputs))


def test_parameters_reach_infer_without_harm(backend: Backend) -> None:
    inputs = batch_of(2)
    assert_same(backend.infer(dict(inputs), 2, {"threshold": 0.5, "mode": "fast", "none": None}), expected_of(inputs))


def test_a_batch_that_cannot_be_run_raises_and_the_next_one_is_answered(backend: Backend) -> None:
    inputs = batch_of(2)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the library has; the engine reports its class and text
        backend.infer({"a": inputs["a"]}, 2, {})
    assert_same(backend.infer(dict(inputs), 2, {}), expected_of(inputs))


def test_the_device_is_named(backend: Backend) -> None:
    assert backend.device == "cpu"


def test_two_models_of_one_kind_live_side_by_side(kit: Kit, context: ModelContext, backend: Backend) -> None:
    other = kit.new()
    other.load(context)
    inputs = batch_of(2)
    other.close()
    assert_same(backend.infer(dict(inputs), 2, {}), expected_of(inputs))


def test_closing_is_harmless_before_loading_and_twice(kit: Kit, context: ModelContext) -> None:
    backend = kit.new()
    backend.close()
    backend.load(context)
    backend.close()
    backend.close()


def test_a_missing_artefact_is_named(kit: Kit, tmp_path: Path) -> None:
    context = kit.context(tmp_path)
    with pytest.raises(ModelLoadError, match=context.spec.artefact_name) as caught:
        kit.new().load(context)
    assert str(context.spec.key) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 16], ids=["empty", "text", "bytes"])
def test_a_broken_artefact_is_a_load_error_that_names_the_model(kit: Kit, tmp_path: Path, content: bytes) -> None:
    context, backend = kit.context(tmp_path), kit.new()
    (tmp_path / context.spec.artefact_name).write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        backend.load(context)
    assert context.spec.artefact_name.split(".")[0] in str(caught.value)
    backend.close()


STREAMING_KITS = [kit for kit in KITS if kit.streams is not None]


@pytest.fixture(params=STREAMING_KITS, ids=lambda kit: kit.backend)
def streaming(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    kit = request.param
    backend = kit.new()
    more = kit.streams(tmp_path)
    backend.load(kit.context(tmp_path, streaming=True, outputs=OUTPUTS[:1], **more))
    yield backend
    backend.close()


def test_a_stream_yields_part_after_part_and_may_end_with_outputs(streaming: Any) -> None:
    inputs, total = batch_of(2), batch_of(2)["a"]
    steps = streaming.stream(dict(inputs), 2, {})
    for step in range(3):
        total = total + inputs["b"].astype(np.float32)
        outputs, rows, final = steps.send(None if step == 0 else frozenset())
        assert_same(outputs, {"sum": total})
        assert (list(rows), final) == ([0, 1], False)
    with pytest.raises(StopIteration) as end:
        steps.send(frozenset())
    assert_same(end.value.value, {"sum": total})


def test_a_stream_is_told_which_rows_nobody_waits_for(streaming: Any) -> None:
    steps = streaming.stream(batch_of(2), 2, {})
    assert next(steps)[1] == [0, 1]
    outputs, rows, final = steps.send(frozenset({0}))
    assert (rows, final, outputs["sum"].shape) == ([1], True, (1, 3))


def test_a_stream_can_be_left_and_the_next_one_begins_anew(streaming: Any) -> None:
    inputs = batch_of(2)
    for _ in range(2):
        steps = streaming.stream(dict(inputs), 2, {})
        assert_same(next(steps)[0], {"sum": inputs["a"] + inputs["b"].astype(np.float32)})
        steps.close()


@pytest.mark.parametrize("kit", STREAMING_KITS, ids=lambda kit: kit.backend)
def test_a_model_that_yields_and_a_spec_that_does_not_say_so_contradict_each_other(kit: Any, tmp_path: Path) -> None:
    backend = kit.new()
    context = kit.context(tmp_path, outputs=OUTPUTS[:1], **kit.streams(tmp_path))
    with pytest.raises(ModelLoadError, match="yields: write streaming: true"):
        backend.load(context)
    backend.close()
