"""Train the two digit classifiers of the example fleet and write them as ONNX.

``digits`` 1 is a linear softmax classifier, ``digits`` 2 a small convolutional network. Both are trained with numpy
alone, backward pass written out, and exported by building the ONNX graph node by node from the trained arrays: no
framework is needed to train again, and the graphs hold nothing but what they compute.

Both graphs take ``image``, raw pixel values 0..16 in rows of 64, and give ``scores``, ten probabilities per row.
Scaling and softmax are part of the graph, so a client sends pixels as they are in the file. Seeds are fixed; another
linear algebra library may still round differently in the last digit.

    python deploy/fleet/train_digits.py     # reads digits.npz beside this file, writes models/digits/{1,2}/model.onnx
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FLEET: Final = Path(__file__).resolve().parent
SIDE: Final = 8
PIXELS: Final = SIDE * SIDE
CLASSES: Final = 10
WHITE: Final = 16.0  # the largest pixel value of the data set
FILTERS: Final = (16, 32)
HIDDEN: Final = 64
OPSET: Final = 17
IR_VERSION: Final = 8  # the oldest file format that holds opset 17: runtimes of its time read the files too
SEED: Final = 1998

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Gradient = Callable[[list[Floats], Floats, Labels], list[Floats]]


@dataclass(frozen=True, slots=True)
class Digits:
    """Images as raw pixel values in rows of 64, their labels, and which of them no training may see."""

    images: Floats
    labels: Labels
    held_out: NDArray[np.bool_]


def load_digits(path: Path) -> Digits:
    """Read ``digits.npz``."""
    with np.load(path) as archive:
        return Digits(
            images=archive["images"].astype(np.float32),
            labels=archive["labels"].astype(np.int64),
            held_out=archive["held_out"].astype(np.bool_),
        )


# --- training: any model that can say its gradient -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long, how fast and on what the parameters learn."""

    epochs: int
    batch_size: int
    rate: float
    weight_decay: float
    shift: bool  # also show each image moved by up to one pixel: handwriting is not centred to the pixel


def train(params: list[Floats], gradient: Gradient, digits: Digits, recipe: Recipe, rng: np.random.Generator) -> None:
    """Fit the parameters in place to what is not held out: Adam, decoupled weight decay, a rate that falls."""
    images, labels = digits.images[~digits.held_out] / np.float32(WHITE), digits.labels[~digits.held_out]
    means, squares = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    steps_per_epoch = len(labels) // recipe.batch_size
    order = np.empty(0, np.int64)
    for step in range(recipe.epochs * steps_per_epoch):
        if step % steps_per_epoch == 0:
            order = rng.permutation(len(labels))
        first = step % steps_per_epoch * recipe.batch_size
        rows = order[first : first + recipe.batch_size]
        batch = shifted(images[rows], rng) if recipe.shift else images[rows]
        rate = recipe.rate * (1 + math.cos(math.pi * step / (recipe.epochs * steps_per_epoch))) / 2
        for i, slope in enumerate(gradient(params, batch, labels[rows])):
            means[i] += (slope - means[i]) * np.float32(0.1)
            squares[i] += (slope * slope - squares[i]) * np.float32(0.001)
            mean, square = means[i] / (1 - 0.9 ** (step + 1)), squares[i] / (1 - 0.999 ** (step + 1))
            params[i] -= rate * (mean / (np.sqrt(square) + 1e-8) + recipe.weight_decay * params[i])


def shifted(images: Floats, rng: np.random.Generator) -> Floats:
    """Move each image by -1, 0 or 1 pixel down and right."""
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    down, right = rng.integers(0, 3, size=(2, len(images)))
    windows = sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
    moved: Floats = windows[np.arange(len(images)), down, right].reshape(-1, PIXELS)
    return moved


def logits_gradient(logits: Floats, labels: Labels) -> Floats:
    """Give the gradient of the mean cross-entropy of softmax(logits)."""
    gradient: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient /= gradient.sum(axis=1, keepdims=True)
    gradient[np.arange(len(labels)), labels] -= 1
    return gradient / np.float32(len(labels))


# --- digits 1: linear ------------------------------------------------------------------------------------------------


def linear_gradient(params: list[Floats], images: Floats, labels: Labels) -> list[Floats]:
    """Give the gradient for weights [64, 10] and bias [10]."""
    weights, bias = params
    slope = logits_gradient(images @ weights + bias, labels)
    return [images.T @ slope, slope.sum(axis=0)]


def train_linear(digits: Digits) -> list[Floats]:
    """Fit the linear classifier."""
    params = [np.zeros((PIXELS, CLASSES), np.float32), np.zeros(CLASSES, np.float32)]
    recipe = Recipe(epochs=120, batch_size=64, rate=0.01, weight_decay=0.01, shift=False)
    train(params, linear_gradient, digits, recipe, np.random.default_rng(SEED))
    return params


# --- digits 2: two convolutions, one pooling, two dense layers -------------------------------------------------------


def patches(images: Floats) -> Floats:
    """Give the 3x3 neighbourhood of every pixel of NCHW images, as [rows, height, width, channels * 9]."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(*windows.shape[:3], -1)


def convolve(seen: Floats, filters: Floats) -> Floats:
    """Apply filters [out, in, 3, 3] to patches; the result is NCHW."""
    return (seen @ filters.reshape(len(filters), -1).T).transpose(0, 3, 1, 2)


def convolution_gradient(seen: Floats, slope: Floats, filters: Floats) -> list[Floats]:
    """Give the gradients of filters and bias from the slope of the NCHW output."""
    flat = slope.transpose(1, 0, 2, 3).reshape(len(filters), -1)
    return [(flat @ seen.reshape(flat.shape[1], -1)).reshape(filters.shape), flat.sum(axis=1)]


def convolutional_gradient(params: list[Floats], images: Floats, labels: Labels) -> list[Floats]:
    """Give the gradients for (filters, bias) twice, then (weights, bias) twice."""
    filters1, bias1, filters2, bias2, weights1, shift1, weights2, shift2 = params
    rows = len(images)
    seen1 = patches(images.reshape(rows, 1, SIDE, SIDE))
    maps1 = np.maximum(convolve(seen1, filters1) + bias1[:, None, None], 0)
    seen2 = patches(maps1)
    maps2 = np.maximum(convolve(seen2, filters2) + bias2[:, None, None], 0)
    cells = maps2.reshape(rows, FILTERS[1], SIDE // 2, 2, SIDE // 2, 2)
    pooled = cells.max(axis=(3, 5), keepdims=True)
    flat = pooled.reshape(rows, -1)
    hidden = np.maximum(flat @ weights1 + shift1, 0)

    slope = logits_gradient(hidden @ weights2 + shift2, labels)
    dense2 = [hidden.T @ slope, slope.sum(axis=0)]
    slope = slope @ weights2.T * (hidden > 0)
    dense1 = [flat.T @ slope, slope.sum(axis=0)]
    # Only the largest cell of each 2x2 window passed; where the largest is 0 the rectifier let nothing through.
    slope = (cells == pooled) * (cells > 0) * (slope @ weights1.T).reshape(pooled.shape)
    slope = slope.reshape(maps2.shape)
    convolution2 = convolution_gradient(seen2, slope, filters2)
    # The way back through a convolution is a convolution with the filters turned round.
    slope = convolve(patches(slope), filters2.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]) * (maps1 > 0)
    return [*convolution_gradient(seen1, slope, filters1), *convolution2, *dense1, *dense2]


def train_convolutional(digits: Digits) -> list[Floats]:
    """Fit the convolutional network."""
    rng = np.random.default_rng(SEED)
    flat = FILTERS[1] * PIXELS // 4
    shapes = [(FILTERS[0], 1, 3, 3), (FILTERS[1], FILTERS[0], 3, 3), (flat, HIDDEN), (HIDDEN, CLASSES)]
    inputs = [9, 9 * FILTERS[0], flat, HIDDEN]
    biases = [*FILTERS, HIDDEN, CLASSES]
    params: list[Floats] = []
    for shape, fan_in, width in zip(shapes, inputs, biases, strict=True):
        params.append((rng.standard_normal(shape) * math.sqrt(2 / fan_in)).astype(np.float32))
        params.append(np.zeros(width, np.float32))
    recipe = Recipe(epochs=40, batch_size=64, rate=0.003, weight_decay=0.01, shift=True)
    train(params, convolutional_gradient, digits, recipe, rng)
    return params


# --- export ----------------------------------------------------------------------------------------------------------


def export(nodes: list[onnx.NodeProto], arrays: dict[str, NDArray[np.generic]], name: str) -> onnx.ModelProto:
    """Make a checked model of nodes that lead from ``image`` to ``scores``."""
    graph = helper.make_graph(
        nodes,
        name,
        inputs=[helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", PIXELS])],
        outputs=[helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        initializer=[numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets, producer_name="headrace")
    onnx.checker.check_model(model, full_check=True)
    return model


def export_linear(params: list[Floats]) -> onnx.ModelProto:
    """Write the linear classifier as a graph."""
    nodes = [
        helper.make_node("Div", ["image", "white"], ["light"]),
        helper.make_node("Gemm", ["light", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    return export(
        nodes, {"white": np.array(WHITE, np.float32), "weights": params[0], "bias": params[1]}, "digits-linear"
    )


def export_convolutional(params: list[Floats]) -> onnx.ModelProto:
    """Write the convolutional network as a graph."""
    names = ["filters1", "bias1", "filters2", "bias2", "weights1", "shift1", "weights2", "shift2"]
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Div", ["image", "white"], ["light"]),
        helper.make_node("Reshape", ["light", "square"], ["picture"]),
        helper.make_node("Conv", ["picture", "filters1", "bias1"], ["edges"], kernel_shape=[3, 3], pads=pads),
        helper.make_node("Relu", ["edges"], ["maps1"]),
        helper.make_node("Conv", ["maps1", "filters2", "bias2"], ["strokes"], kernel_shape=[3, 3], pads=pads),
        helper.make_node("Relu", ["strokes"], ["maps2"]),
        helper.make_node("MaxPool", ["maps2"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights1", "shift1"], ["dense"]),
        helper.make_node("Relu", ["dense"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "weights2", "shift2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    # In a Reshape, 0 keeps the batch dimension as it comes; -1 could not be solved for a batch of no rows.
    square = np.array([0, 1, SIDE, SIDE], np.int64)
    arrays: dict[str, NDArray[np.generic]] = dict(zip(names, params, strict=True))
    return export(nodes, arrays | {"white": np.array(WHITE, np.float32), "square": square}, "digits-convolutional")


def accuracy(model: onnx.ModelProto, digits: Digits) -> float:
    """Give the share of held-out images that the exported graph names rightly."""
    evaluator = ReferenceEvaluator(model)
    (scores,) = map(np.asarray, evaluator.run(None, {"image": digits.images[digits.held_out]}))
    return float((scores.argmax(axis=1) == digits.labels[digits.held_out]).mean())


def main() -> None:
    """Train both versions, write them, and say how often they are right."""
    parser = argparse.ArgumentParser(description="Train the digit classifiers and write them as ONNX.")
    parser.add_argument("--data", type=Path, default=FLEET / "digits.npz")
    parser.add_argument("--out", type=Path, default=FLEET / "models" / "digits")
    options = parser.parse_args()
    digits = load_digits(options.data)
    for version, model in (
        ("1", export_linear(train_linear(digits))),
        ("2", export_convolutional(train_convolutional(digits))),
    ):
        path = options.out / version / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        print(f"digits {version}: {accuracy(model, digits):.4f} of the held-out images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
