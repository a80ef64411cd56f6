from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import ModelLoadError
from tests.engine_process import python_model, rows_of, spec_in
from workers.backends.base import ModelContext, visible_device
from workers.backends.python import PythonBackend


@pytest.fixture
def backend() -> Iterator[PythonBackend]:
    backend = PythonBackend()
    yield backend
    backend.close()


def load(backend: PythonBackend, folder: Path, code: str, **fields: Any) -> PythonBackend:
    python_model(folder, code, **fields)
    backend.load(ModelContext(spec_in(folder), folder, threads=3, device="cpu"))
    return backend


def refusal(backend: PythonBackend, folder: Path, code: str, **fields: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(backend, folder, code, **fields)
    return str(caught.value)


def test_the_handler_is_told_its_folder_spec_threads_and_device(backend: PythonBackend, tmp_path: Path) -> None:
    code = """
class Model:
    def load(self, context):
        self.seen = [str(context.folder), str(context.spec.key), context.threads, context.device]
    def infer(self, inputs):
        return {"seen": self.seen}
"""
    outputs = load(backend, tmp_path, code).infer({}, 1, {})
    assert outputs["seen"] == [str(tmp_path), "made-up@1", 3, "cpu"]


def test_a_handler_that_names_parameters_gets_them(backend: PythonBackend, tmp_path: Path) -> None:
    code = """
class Model:
    def infer(self, inputs, parameters):
        return {"y": inputs["x"] * parameters["factor"]}
"""
    outputs = load(backend, tmp_path, code).infer({"x": rows_of(2)}, 2, {"factor": 3})
    assert outputs["y"].tolist() == (rows_of(2) * 3).tolist()


def test_other_arguments_with_defaults_stay_the_handlers_own(backend: PythonBackend, tmp_path: Path) -> None:
    code = "class Model:\n    def infer(self, inputs, scale=2):\n        return {'y': inputs['x'] * scale}\n"
    assert load(backend, tmp_path, code).infer({"x": rows_of(1)}, 1, {})["y"].tolist() == [[0.0, 2.0]]


def test_files_beside_the_handler_are_imported_relatively(backend: PythonBackend, tmp_path: Path) -> None:
    (tmp_path / "scales.py").write_text("SCALE = 5\n")
    code = """
from .scales import SCALE

class Model:
    def infer(self, inputs):
        from . import scales
        return {"y": [SCALE, scales.SCALE]}
"""
    assert load(backend, tmp_path, code).infer({}, 1, {})["y"] == [5, 5]


def test_two_models_with_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    code = "from . import part\n\nclass Model:\n    def infer(self, inputs):\n        return {'y': part.NAME}\n"
    loaded = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.py").write_text(f"NAME = {name!r}\n")
        loaded.append(load(PythonBackend(), tmp_path / name, code))
    assert [backend.infer({}, 1, {})["y"] for backend in loaded] == ["first", "second"]
    for backend in loaded:
        backend.close()


def test_neither_the_search_path_nor_any_module_stays_behind(tmp_path: Path) -> None:
    modules, path = set(sys.modules), list(sys.path)
    backend = load(PythonBackend(), tmp_path, "class Model:\n    def infer(self, inputs):\n        return {}\n")
    assert sys.path == path
    assert set(sys.modules) - modules == {"headrace_model_made_up_1", "headrace_model_made_up_1.model"}
    backend.close()
    assert set(sys.modules) == modules


def test_a_changed_handler_is_read_again(tmp_path: Path) -> None:
    for answer in ("one", "three"):
        code = f"class Model:\n    def infer(self, inputs):\n        return {{'y': {answer!r}}}\n"
        backend = load(PythonBackend(), tmp_path, code)
        assert backend.infer({}, 1, {})["y"] == answer
        backend.close()


def test_a_handler_in_a_nested_module_is_found(backend: PythonBackend, tmp_path: Path) -> None:
    python_model(tmp_path, "", handler="parts.core:Doubler")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "core.py").write_text(
        "class Doubler:\n    def infer(self, inputs):\n        return {'y': inputs['x'] * 2}\n"
    )
    backend.load(ModelContext(spec_in(tmp_path), tmp_path))
    assert backend.infer({"x": rows_of(1)}, 1, {})["y"].tolist() == [[0.0, 2.0]]


def test_a_handler_with_close_is_closed_once(tmp_path: Path) -> None:
    code = f"""
class Model:
    def infer(self, inputs):
        return {{}}
    def close(self):
        with open({str(tmp_path / "closed")!r}, "a") as file:
            file.write("closed ")
"""
    backend = load(PythonBackend(), tmp_path, code)
    backend.close()
    backend.close()
    assert (tmp_path / "closed").read_text() == "closed "


GOOD = "class Model:\n    def infer(self, inputs):\n        return {}\n"


@pytest.mark.parametrize(
    ("code", "fields", "words"),
    [
        (GOOD, {"handler": "model"}, ["module:Class"]),
        (GOOD, {"handler": "../model:Model"}, ["module:Class"]),
        (GOOD, {"handler": "other:Model"}, ["other.py", "handler:"]),
        (GOOD, {"handler": "model:Other"}, ["no class Other", "handler:"]),
        ("Model = 3\n", {}, ["no class Model"]),
        ("import no_such_library\n", {}, ["ModuleNotFoundError", "no_such_library", "model.py, line 1"]),
        ("def broken(:\n", {}, ["SyntaxError"]),
        ("raise SystemExit(4)\n", {}, ["SystemExit: 4"]),
        ("class Model:\n    def __init__(self, size):\n        pass\n", {}, ["TypeError", "size"]),
        ("class Model:\n    def load(self, context):\n        return {}['weights']\n", {}, ["KeyError", "line 3"]),
        ("class Model:\n    pass\n", {}, ["infer(self, inputs)"]),
        ("class Model:\n    async def infer(self, inputs):\n        return {}\n", {}, ["plain method", "async"]),
        ("class Model:\n    def infer(self, inputs):\n        yield {}\n", {}, ["yields", "streaming: true"]),
        ("class Model:\n    def infer(self, inputs):\n        return {}\n", {"streaming": True}, ["does not yield"]),
        (
            "class Model:\n    def infer(self, inputs):\n        return {}\n",
            {"sequences": {}},
            ["(self, inputs, *, seq"],
        ),
        ("class Model:\n    def infer(self, inputs, *, sequences):\n        ...\n", {}, ["(self, inputs)"]),
        ("class Model:\n    def infer(self):\n        return {}\n", {}, ["(self, inputs)", "not ()"]),
        ("class Model:\n    def infer(self, inputs, extra):\n        return {}\n", {}, ["not (inputs, extra)"]),
    ],
)
def test_a_handler_that_cannot_serve_is_refused_with_the_reason(
    code: str, fields: dict[str, str], words: list[str], backend: PythonBackend, tmp_path: Path
) -> None:
    message = refusal(backend, tmp_path, code, **fields)
    assert message.startswith("made-up@1: ")
    for word in words:
        assert word in message


def test_an_absolute_import_of_a_file_beside_the_handler_is_explained(backend: PythonBackend, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("")
    assert "write `from . import neighbour`" in refusal(backend, tmp_path, "import neighbour\n")


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f3c"}, "cuda:0"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1b2a"}, "cuda:0"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "cuda:0"),
    ],
)
def test_the_device_is_the_one_that_the_leases_environment_shows(environment: dict[str, str], device: str) -> None:
    assert visible_device(environment) == device


def test_what_infer_returns_is_passed_on_untouched(backend: PythonBackend, tmp_path: Path) -> None:
    code = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
    x = rows_of(2)
    assert np.shares_memory(load(backend, tmp_path, code).infer({"x": x}, 2, {})["y"], x)
