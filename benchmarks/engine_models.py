"""The models that the benchmarks serve, from a device that only takes time to a real encoder.

`sim`     a fixed cost per batch: what the path adds to a batch is all that it can lose
`slow`    the same with twice the cost, for the overload benchmark
`mlp`     16 → 32 → 4 in ONNX, a few microseconds a batch: what a request costs everybody else
`minilm`  all-MiniLM-L6-v2 in ONNX at 32 tokens: both at once, on the cores that the path needs too
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper, save

from benchmarks import minilm
from contracts.specs import DeploymentSpec, DeviceSpec, ModelSpec, WorkersSpec, parse_model

BUILT = Path("build/models").absolute()
TOKENS = 32
_SIM = Path(__file__).resolve().parent / "models/sim/1"
_SLOW = Path(__file__).resolve().parent / "models/slow/1"
_WIDTHS = (16, 32, 4)

Arrays = dict[str, npt.NDArray[Any]]

_MLP_YAML = """\
name: mlp
version: 1
backend: onnx
inputs:
  - {name: row, datatype: FP32, shape: [-1, 16]}
outputs:
  - {name: scores, datatype: FP32, shape: [-1, 4]}
batching: {max_batch_size: 64}
"""
# Batches of 32, like the bare measurement it is compared with; larger ones gain nothing on a CPU.
_MINILM_YAML = """\
name: minilm
version: 1
backend: onnx
inputs:
  - {name: input_ids, datatype: INT64, shape: [-1, 32]}
  - {name: attention_mask, datatype: INT64, shape: [-1, 32]}
outputs:
  - {name: embedding, datatype: FP32, shape: [-1, 384]}
batching: {max_batch_size: 32}
"""


@dataclass(frozen=True)
class BenchModel:
    """A model, its folder, and what to ask it. `threads` go to the engine and to the bare measurement alike."""

    spec: ModelSpec
    folder: Path
    sample: Callable[[int], Arrays]
    compute: int
    """Percent of a core that the deployment reserves."""
    threads: int = 1

    @property
    def deployment(self) -> DeploymentSpec:
        """One worker of it."""
        return DeploymentSpec(
            model=self.spec.name,
            version=self.spec.version,
            workers=WorkersSpec(min=1, max=1),
            device=DeviceSpec(kind="cpu", compute=self.compute, memory_mib=512),
            allow_code=self.spec.backend == "python",
        )


def prepare(name: str) -> BenchModel:
    """Build a model's folder where it has to be built. Raises minilm.NotFetched."""
    return _builders[name]()


def names() -> list[str]:
    """Those of the engine benchmark."""
    return ["sim", "mlp", "minilm"]


def _rows_of_16(rows: int) -> Arrays:
    return {"row": np.random.default_rng(5).standard_normal((rows, 16), np.float32)}


def _sentences(rows: int) -> Arrays:
    """Full-length sequences: every token costs the same, whatever it means."""
    ids = np.random.default_rng(5).integers(1000, 30_000, (rows, TOKENS), np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _sim() -> BenchModel:
    return BenchModel(_spec(_SIM), _SIM, _rows_of_16, compute=25)


def _slow() -> BenchModel:
    return BenchModel(_spec(_SLOW), _SLOW, _rows_of_16, compute=25)


def _mlp() -> BenchModel:
    folder = BUILT / "mlp/1"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    inner = [
        numpy_helper.from_array(random.standard_normal(shape, np.float32), name)
        for name, shape in (("w1", _WIDTHS[:2]), ("b1", _WIDTHS[1:2]), ("w2", _WIDTHS[1:]), ("b2", _WIDTHS[2:]))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["row", "w1", "b1"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["scores"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["rows", _WIDTHS[0]])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", _WIDTHS[2]])],
        inner,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    (folder / "model.yaml").write_text(_MLP_YAML, encoding="utf-8")
    return BenchModel(_spec(folder), folder, _rows_of_16, compute=25)


def _minilm() -> BenchModel:
    folder = BUILT / "minilm/1"
    minilm.export(folder / "model.onnx")
    (folder / "model.yaml").write_text(_MINILM_YAML, encoding="utf-8")
    return BenchModel(_spec(folder), folder, _sentences, compute=100)


def _spec(folder: Path) -> ModelSpec:
    path = folder / "model.yaml"
    return parse_model(path.read_text(encoding="utf-8"), str(path))


_builders: dict[str, Callable[[], BenchModel]] = {
    "sim": _sim,
    "slow": _slow,
    "mlp": _mlp,
    "minilm": _minilm,
}
