from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from benchmarks.minilm import EPSILON, Weights, build, read_weights

WIDTH, INNER, HEADS, WORDS, LENGTH, LAYERS = 24, 40, 3, 50, 16, 2

Array = npt.NDArray[Any]


@pytest.fixture
def weights() -> dict[str, Array]:
    random = np.random.default_rng(11)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (LENGTH, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        dense = {f"attention.self.{which}": (WIDTH, WIDTH) for which in ("query", "key", "value")}
        dense |= {
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (INNER, WIDTH),
            "output.dense": (WIDTH, INNER),
        }
        for name, shape in dense.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{name}.weight": (WIDTH,), f"{prefix}{name}.bias": (WIDTH,)}
    return {name: random.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def norm(x: Array, weights: Weights, prefix: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return np.asarray(scaled * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"])


def dense(x: Array, weights: Weights, prefix: str) -> Array:
    return x @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"]


def encoded(x: Array, mask: Array, weights: Weights, prefix: str) -> Array:
    query, key, value = (dense(x, weights, f"{prefix}attention.self.{which}") for which in ("query", "key", "value"))
    context, part = np.zeros_like(x), WIDTH // HEADS
    for head in range(HEADS):
        own = slice(head * part, (head + 1) * part)
        scores = query[:, own] @ key[:, own].T / math.sqrt(part)
        scores[:, mask == 0] = -np.inf
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        context[:, own] = odds / odds.sum(-1, keepdims=True) @ value[:, own]
    attended = dense(context, weights, f"{prefix}attention.output.dense")
    x = norm(attended + x, weights, f"{prefix}attention.output.LayerNorm")
    inner = dense(x, weights, f"{prefix}intermediate.dense")
    active: Array = inner * (1 + np.vectorize(math.erf, otypes=[float])(inner / math.sqrt(2))) / 2
    output = dense(active, weights, f"{prefix}output.dense")
    return norm(output + x, weights, f"{prefix}output.LayerNorm")


def embedding(ids: Array, mask: Array, weights: Weights) -> Array:
    """What the graph must give for one sequence, in float64."""
    words, positions = weights["embeddings.word_embeddings.weight"], weights["embeddings.position_embeddings.weight"]
    x = words[ids] + positions[: len(ids)] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, weights, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        x = encoded(x, mask, weights, f"encoder.layer.{layer}.")
    mean = x[mask == 1].mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


def test_the_graph_computes_what_plain_numpy_computes(weights: dict[str, Array]) -> None:
    session = onnxruntime.InferenceSession(build(weights, HEADS).SerializeToString())
    random = np.random.default_rng(12)
    ids = random.integers(0, WORDS, (4, 9))
    mask = (np.arange(9) < np.array([[9], [5], [1], [8]])).astype(np.int64)

    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})

    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    expected = np.stack([embedding(row, own, exact) for row, own in zip(ids, mask, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_a_safetensors_file_gives_its_float_tensors() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    header = {
        "__metadata__": {"format": "pt"},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
    }
    text = json.dumps(header).encode()

    found = read_weights(struct.pack("<Q", len(text)) + text + bytes(8) + values.tobytes())

    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], values)
