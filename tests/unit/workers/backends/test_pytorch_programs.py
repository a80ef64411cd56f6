"""The artefacts of the torch backend that are not archives of code: weights for a declared module, and machine code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import ModelLoadError
from contracts.specs import ModelSpec
from workers.backends import new_backend
from workers.backends.base import Backend, ModelContext

torch: Any = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
safetensors: Any = pytest.importorskip("safetensors.torch", reason="the extra 'torch' is not installed")

MODULE = """
import torch
from . import sizes

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(sizes.WIDTH, 3)

    def forward(self, x):
        return self.layer(x)

class NotAModule:
    pass
"""
X = np.arange(10, dtype=np.float32).reshape(5, 2)


def spec(**more: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "net",
            "version": 1,
            "backend": "torch",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }
        | more
    )


def loaded(folder: Path, **more: Any) -> Backend:
    backend = new_backend("torch")
    backend.load(ModelContext(spec(**more), folder))
    return backend


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODULE)
    (tmp_path / "sizes.py").write_text("WIDTH = 2\n")
    return tmp_path


def save(folder: Path, module: Any) -> None:
    safetensors.save_file(module.state_dict(), folder / "model.safetensors")


class Wrapped(torch.nn.Module):  # type: ignore[misc]  # torch is optional here
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 3)

    def forward(self, x: Any) -> Any:
        return self.layer(x)


def test_weights_go_into_the_module_that_the_spec_declares(folder: Path) -> None:
    module = Wrapped().eval()
    save(folder, module)
    backend = loaded(folder, handler="net:Net")
    outputs = backend.infer({"x": X}, 5, {})
    backend.close()
    assert np.allclose(outputs["y"], module(torch.from_numpy(X)).detach().numpy())


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    safetensors.save_file({"layer.weight": torch.zeros(3, 2), "other": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"does not fit net:Net: it lacks layer\.bias; it has other too many"):
        loaded(folder, handler="net:Net")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    save(folder, Wrapped(width=7))
    with pytest.raises(ModelLoadError, match=r"size mismatch for layer\.weight"):
        loaded(folder, handler="net:Net")


def test_a_class_that_is_no_module_is_refused(folder: Path) -> None:
    save(folder, Wrapped())
    with pytest.raises(ModelLoadError, match=r"net:NotAModule must be a torch\.nn\.Module, not a NotAModule"):
        loaded(folder, handler="net:NotAModule")


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is no safetensors file"):
        loaded(folder, handler="net:Net")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_compiled_package_runs(tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=64)
    module = Wrapped().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (torch.zeros(2, 2),), dynamic_shapes=({0: rows},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        outputs = loaded(tmp_path, artefact="model.pt2").infer({"x": X}, 5, {})
    assert np.allclose(outputs["y"], module(torch.from_numpy(X)).detach().numpy(), atol=1e-6)


STREAMS = """
import torch

class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)

class Generates(Base):
    def forward(self, x):
        return self.layer(x)

    def generate(self, x):
        try:
            yield self.layer(x)
            yield [self.layer(x) + 1], [0]
        finally:
            self.left = True

class Plain(Base):
    def generate(self, x):
        return x

class Raises(Base):
    def forward(self, x):
        yield self.layer(x)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
"""


def test_a_module_that_generates_is_asked_for_its_parts(folder: Path) -> None:
    (folder / "net.py").write_text(STREAMS)
    module = Wrapped().eval()
    save(folder, module)
    want = module(torch.from_numpy(X)).detach().numpy()
    backend: Any = loaded(folder, handler="net:Generates", streaming=True)
    steps = backend.stream({"x": X}, 5, {})
    assert np.allclose(next(steps)["y"], want)
    outputs, rows = steps.send(frozenset())
    assert np.allclose(outputs["y"], want + 1)
    assert rows == [0]
    assert not torch.is_inference_mode_enabled()
    steps.close()
    assert backend._program.__self__.left


def test_a_module_that_cannot_yield_is_refused_when_the_spec_says_that_it_streams(folder: Path) -> None:
    (folder / "net.py").write_text(STREAMS)
    save(folder, Wrapped())
    with pytest.raises(ModelLoadError, match=r"streaming: true, but neither net:Plain\.generate nor \.forward yields"):
        loaded(folder, handler="net:Plain", streaming=True)


def test_a_stream_that_finds_no_memory_says_so_as_a_memory_error(folder: Path) -> None:
    (folder / "net.py").write_text(STREAMS)
    save(folder, Wrapped())
    backend: Any = loaded(folder, handler="net:Raises", streaming=True)
    steps = backend.stream({"x": X}, 5, {})
    next(steps)
    with pytest.raises(MemoryError, match="9 bytes"):
        steps.send(frozenset())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"streaming": True}, "streaming with the torch backend needs a handler"),
        ({"sequences": {}, "handler": "net:Net"}, "sequences does not go with the torch backend"),
        ({"streaming": True, "backend": "onnx"}, "streaming does not go with the onnx backend"),
    ],
)
def test_a_spec_asks_only_for_what_its_backend_can(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(**fields)
