"""Put the models of the installed rapidocr-onnxruntime into the folders that describe them.

    python examples/read-page/prepare.py        # writes into models/ beside this file; takes two seconds

Nothing is trained or downloaded here. Each graph gets a few nodes at its ends, which change no result and shrink what
travels between steps:

    page-detect    takes pixels as bytes and normalizes them itself; gives [n, height, width]
    line-turn      the same, and blanks what is behind the line
    line-read      the same, and gives the likeliest of 6,625 characters per column rather than all their likelihoods

The code that two steps need is copied from shared/ into each: a model version is a folder that needs no other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

HERE: Final = Path(__file__).resolve().parent
PACKAGE: Final = "rapidocr_onnxruntime"
SHARED: Final = {"picture.py": ("page-scale", "page-crop"), "strip.py": ("line-view", "line-strip")}

Nodes = list[NodeProto]
Constants = list[TensorProto]


class NotInstalled(RuntimeError):
    """The package with the models is missing."""


def package_models() -> Path:
    """Where the package keeps its models; the package itself is not imported. Raises NotInstalled."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        msg = "rapidocr-onnxruntime is not installed: pip install -e '.[examples]' (Python 3.11 or 3.12)"
        raise NotInstalled(msg)
    return Path(spec.submodule_search_locations[0]) / "models"


def _constant(name: str, value: object, dtype: type[np.generic]) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def _tensor(name: str, kind: int, shape: list[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def detector(model: ModelProto) -> ModelProto:
    """Pixels in, [n, height, width] out."""
    # The library normalizes in double precision; so does this, to the last bit.
    constants = [
        _constant("per_level", 1 / 255, np.float32),
        _constant("middle", 0.5, np.float64),
    ]
    nodes = [
        helper.make_node("Cast", ["picture"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "per_level"], ["light"]),
        helper.make_node("Cast", ["light"], ["exact"], to=TensorProto.DOUBLE),
        helper.make_node("Sub", ["exact", "middle"], ["centred"]),
        helper.make_node("Div", ["centred", "middle"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["rounded"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["rounded"], ["x"], perm=[0, 3, 1, 2]),
    ]
    tail = [helper.make_node("Squeeze", [model.graph.output[0].name], ["text"], axes=[1])]
    inputs = [_tensor("picture", TensorProto.UINT8, ["pages", "height", "width", 3])]
    outputs = [_tensor("text", TensorProto.FLOAT, ["pages", "height", "width"])]
    return _extended(model, nodes, constants, inputs, tail, outputs)


def _strip_head() -> tuple[Nodes, Constants]:
    """Nodes from a strip of pixels, of which the first columns are filled, to `x`."""
    constants = [
        _constant("levels_per_one", 255, np.float32),
        _constant("middle", 0.5, np.float32),
        _constant("blank", 0, np.float32),
        _constant("first", 0, np.int64),
        _constant("step", 1, np.int64),
        _constant("column_shape", [-1, 1, 1, 1], np.int64),
        _constant("width_axis", 2, np.int64),
    ]
    nodes = [
        helper.make_node("Cast", ["strip"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "levels_per_one"], ["light"]),
        helper.make_node("Sub", ["light", "middle"], ["centred"]),
        helper.make_node("Div", ["centred", "middle"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["strip"], ["strip_shape"]),
        helper.make_node("Gather", ["strip_shape", "width_axis"], ["width"]),
        helper.make_node("Range", ["first", "width", "step"], ["columns"]),
        helper.make_node("Reshape", ["filled", "column_shape"], ["ends"]),
        helper.make_node("Less", ["columns", "ends"], ["is_filled"]),
        helper.make_node("Where", ["is_filled", "planes", "blank"], ["x"]),
    ]
    return nodes, constants


def orientation(model: ModelProto) -> ModelProto:
    """A strip in, odds out."""
    nodes, constants = _strip_head()
    tail = [helper.make_node("Identity", [model.graph.output[0].name], ["odds"])]
    inputs = [
        _tensor("strip", TensorProto.UINT8, ["lines", 48, 192, 3]),
        _tensor("filled", TensorProto.INT64, ["lines"]),
    ]
    return _extended(model, nodes, constants, inputs, tail, [_tensor("odds", TensorProto.FLOAT, ["lines", 2])])


def recognizer(model: ModelProto) -> ModelProto:
    """A strip in, the likeliest character of each column out."""
    nodes, constants = _strip_head()
    likelihoods = model.graph.output[0].name
    tail = [
        helper.make_node("ArgMax", [likelihoods], ["character"], axis=2, keepdims=0),
        helper.make_node("ReduceMax", [likelihoods], ["likelihood"], axes=[2], keepdims=0),
    ]
    inputs = [
        _tensor("strip", TensorProto.UINT8, ["lines", 48, "width", 3]),
        _tensor("filled", TensorProto.INT64, ["lines"]),
    ]
    outputs = [
        _tensor("character", TensorProto.INT64, ["lines", "columns"]),
        _tensor("likelihood", TensorProto.FLOAT, ["lines", "columns"]),
    ]
    return _extended(model, nodes, constants, inputs, tail, outputs)


def _extended(
    model: ModelProto,
    head: Nodes,
    constants: Constants,
    inputs: list[ValueInfoProto],
    tail: Nodes,
    outputs: list[ValueInfoProto],
) -> ModelProto:
    """The same model with nodes in front, which give its input `x`, and behind."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} - {"x"}
    taken |= {tensor.name for tensor in graph.initializer}
    ours = {name for node in head + tail for name in node.output} | {tensor.name for tensor in constants}
    if (ours - {"x"}) & taken:
        msg = f"the model already has {sorted(ours & taken)}: another version of the package than this was made for?"
        raise ValueError(msg)
    nodes = [*head, *graph.node, *tail]
    whole = helper.make_graph(nodes, graph.name, inputs, outputs, [*graph.initializer, *constants])
    made = helper.make_model(whole, ir_version=max(model.ir_version, 7), opset_imports=model.opset_import)
    onnx.checker.check_model(made)
    return made


def alphabet(model: ModelProto) -> list[str]:
    """The characters that the recognizer knows, as it names them itself."""
    (found,) = [str(entry.value) for entry in model.metadata_props if entry.key == "character"]
    return found.splitlines()


def prepare(models: Path) -> None:
    """Write all that the model folders under `models` need beside what is in them. Raises NotInstalled."""
    source = package_models()
    read = onnx.load(source / "ch_PP-OCRv4_rec_infer.onnx")
    onnx.save(detector(onnx.load(source / "ch_PP-OCRv4_det_infer.onnx")), models / "page-detect/1/model.onnx")
    onnx.save(orientation(onnx.load(source / "ch_ppocr_mobile_v2.0_cls_infer.onnx")), models / "line-turn/1/model.onnx")
    onnx.save(recognizer(read), models / "line-read/1/model.onnx")
    characters = json.dumps(alphabet(read), ensure_ascii=False)
    (models / "line-decode/1/characters.json").write_text(characters, encoding="utf-8")
    for name, users in SHARED.items():
        for user in users:
            shutil.copyfile(HERE / "shared" / name, models / user / "1" / name)


def main() -> None:
    """Prepare, and say what was written."""
    parser = argparse.ArgumentParser(description="Put the models of rapidocr-onnxruntime into the example's folders.")
    parser.add_argument("--models", type=Path, default=HERE / "models")
    models = parser.parse_args().models
    prepare(models)
    for path in sorted(models.glob("*/*/*.onnx")):
        print(f"{path.relative_to(models)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
