"""One suite for every backend: what the engine relies on, whichever library runs the model.

Each backend brings the same little model in its own format: `sum` = a + b, `twice` = 2 b, row by row.
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


@dataclass(frozen=True)
class Kit:
    """How one backend gets its model."""

    backend: Any
    write: Callable[[Path], None]
    library: str

    def context(self, folder: Path, **fields: Any) -> ModelContext:
        spec = {"name": "affine", "version": 1, "backend": self.backend, "inputs": INPUTS, "outputs": OUTPUTS} | fields
        return ModelContext(ModelSpec.model_validate(spec), folder)

    def new(self) -> Backend:
        pytest.importorskip(self.library, reason=f"{self.library} is not installed")
        return new_backend(self.backend)


KITS = [
    Kit("python", write_python, "numpy"),
    Kit("onnx", write_onnx, "onnxruntime"),
    Kit("torch", write_torch, "torch"),
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
    regions = OutputRegions(context.spec.outputs, 4096).place(backend.infer(batch_of(5), 5, {}), 5)
    assert [region.name for region, _ in regions] == ["sum", "twice"]


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
