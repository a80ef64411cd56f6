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


class Scale(torch.nn.Module):  # type: ignore[misc]  # torch is optional here
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Any) -> Any:
        return x * self.factor


class Named(torch.nn.Module):  # type: ignore[misc]  # the same
    def forward(self, x: Any) -> Any:
        return {"y": x + 1}


def context(folder: Path, datatype: str = "FP32", *outputs: str) -> ModelContext:
    sides = {
        "inputs": [{"name": "x", "datatype": datatype, "shape": [-1, 2]}],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1, 2]} for name in outputs or ("y",)],
    }
    return ModelContext(ModelSpec.model_validate({"name": "t", "version": 1, "backend": "torch"} | sides), folder)


def loaded(context: ModelContext) -> Backend:
    backend = new_backend("torch")
    backend.load(context)
    return backend


def save_script(module: Any, path: Path, dtype: Any = torch.float32) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 2, dtype=dtype), strict=False), path)


def save_export(module: Any, path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (torch.zeros(2, 2),), dynamic_shapes=({0: rows},))
        torch.export.save(program, path)


X = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize("save", [save_script, save_export])
def test_either_format_is_known_by_its_content(save: Any, tmp_path: Path) -> None:
    # torch.export.save insists on the suffix .pt2, and the artefact is called model.pt all the same.
    save(Scale().eval(), tmp_path / "saved.pt2")
    (tmp_path / "saved.pt2").rename(tmp_path / "model.pt")
    backend = loaded(context(tmp_path))
    assert backend.infer({"x": X}, 3, {})["y"].tolist() == (X * 3).tolist()
    assert backend.device == "cpu"


def test_a_dict_names_its_outputs_itself(tmp_path: Path) -> None:
    save_script(Named(), tmp_path / "model.pt")
    assert loaded(context(tmp_path)).infer({"x": X}, 3, {})["y"].tolist() == (X + 1).tolist()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(Scale(), tmp_path / "model.pt")
    with pytest.raises(ModelLoadError, match=r"neither a TorchScript archive .* nor a torch\.export program"):
        loaded(context(tmp_path))


def test_brain_floats_cross_as_their_patterns(tmp_path: Path) -> None:
    save_script(Scale().to(torch.bfloat16), tmp_path / "model.pt", torch.bfloat16)
    one, three = 0x3F80, 0x4040
    outputs = loaded(context(tmp_path, "BF16")).infer({"x": np.full((3, 2), one, np.uint16)}, 3, {})
    assert outputs["y"].dtype == np.uint16
    assert outputs["y"].tolist() == [[three] * 2] * 3


def test_texts_are_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'x' cannot be BYTES; use the python backend"):
        loaded(context(tmp_path, "BYTES"))


def test_another_number_of_outputs_fails_the_batch(tmp_path: Path) -> None:
    save_script(Scale(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"gives 1 outputs, but model\.yaml declares 2"):
        loaded(context(tmp_path, "FP32", "y", "z")).infer({"x": X}, 3, {})
