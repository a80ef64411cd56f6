"""The models of the GPU benchmark, with random weights: what they compute does not matter, what it costs does.

`wide`     four layers of 4096, a tiny cost a batch: what the engine adds is seen best
`encoder`  twelve encoder layers of 768 at 128 positions in BF16, the size of BERT-base
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contracts.specs import ModelSpec

_CODE = """\
import torch


class Wide(torch.nn.Module):
    def __init__(self, width={width}, layers={layers}):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Encoder(torch.nn.Module):
    def __init__(self, width={width}, layers={layers}, words=30_000):
        super().__init__()
        self.words = torch.nn.Embedding(words, width, dtype=torch.bfloat16)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                width, width // 64, 4 * width, batch_first=True, activation="gelu", dtype=torch.bfloat16
            )
            for _ in range(layers)
        )

    def forward(self, tokens):
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return x.mean(1).float()
"""
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class GpuModel(NamedTuple):
    """A model's folder and its spec."""

    spec: ModelSpec
    folder: Path

    def sample(self, rows: int) -> dict[str, Any]:
        """Inputs of so many rows."""
        (tensor,) = self.spec.inputs
        dice, shape = np.random.default_rng(7), (rows, *tensor.shape[1:])
        if tensor.datatype == "INT64":
            return {tensor.name: dice.integers(0, 30_000, shape)}
        return {tensor.name: dice.standard_normal(shape).astype(np.float32)}


def build(name: str, root: Path, *, width: int = 0, layers: int = 0) -> GpuModel:
    """Write a model's folder; `width` and `layers` make it smaller than it should be. Needs torch and safetensors."""
    is_wide = name == "wide"
    width, layers = width or (4096 if is_wide else 768), layers or (4 if is_wide else 12)
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, width]}
    spec = ModelSpec.model_validate(
        {
            "name": name,
            "version": 1,
            "backend": "torch",
            "handler": f"net:{'Wide' if is_wide else 'Encoder'}",
            "inputs": [tensor if is_wide else {"name": "tokens", "datatype": "INT64", "shape": [-1, 128]}],
            "outputs": [tensor | {"name": "y"}],
            "batching": {"max_batch_size": BUCKETS[-1], "preferred_batch_sizes": BUCKETS, "padding": {"batch": True}},
        }
    )
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    code = _CODE.format(width=width, layers=layers)
    (folder / "net.py").write_text(code)
    (folder / "model.yaml").write_text(spec.model_dump_json())
    _save_weights(code, spec.handler.partition(":")[2], folder / "model.safetensors")
    return GpuModel(spec, folder)


def _save_weights(code: str, kind: str, path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    names: dict[str, Any] = {}
    exec(compile(code, "net.py", "exec"), names)  # noqa: S102 - the lines above
    torch.manual_seed(7)
    save_file(names[kind]().state_dict(), path)
