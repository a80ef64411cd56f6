"""Train the random forest of the example fleet and write it as ONNX.

``digits-forest`` 1 sees the same images as the two models of ``train_digits.py`` and errs on others, which is what an
ensemble lives on. It is grown with numpy alone: a pixel has 17 values, so the best split of a node is read off a table
of counts by pixel value and digit, all thresholds at once. The trees become one TreeEnsembleClassifier, the operator
that ONNX has for them.

    python deploy/fleet/train_forest.py     # reads digits.npz beside this file, writes models/digits-forest/1/
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deploy.fleet.train_digits import CLASSES, FLEET, IR_VERSION, OPSET, PIXELS, WHITE, Digits, load_digits

TREES: Final = 80
CANDIDATES: Final = 8  # pixels that a node may choose from: the square root of all, as is usual
LEVELS: Final = int(WHITE) + 1
SEED: Final = 2001
TREE_OPSET: Final = 3

Counts = NDArray[np.float64]


@dataclass(slots=True)
class TreeNode:
    """A question about one pixel (at most so bright: left), or, at the end, how often each digit came here."""

    counts: Counts
    pixel: int = 0
    threshold: int = 0
    left: int = -1
    right: int = -1

    @property
    def is_leaf(self) -> bool:
        """Whether there is nothing more to ask."""
        return self.left < 0


def grow(images: NDArray[np.uint8], labels: NDArray[np.int64], rng: np.random.Generator) -> list[TreeNode]:
    """A tree on a sample with replacement, grown until every leaf holds one digit; the first node is the root."""
    sample = rng.integers(0, len(labels), len(labels))
    nodes = [TreeNode(_count(labels[sample]))]
    waiting = [(0, sample)]
    while waiting:
        at, rows = waiting.pop()
        split = best_split(images[rows], labels[rows], rng)
        if split is None:
            continue
        nodes[at].pixel, nodes[at].threshold = split
        is_left = images[rows, split[0]] <= split[1]
        nodes[at].left, nodes[at].right = len(nodes), len(nodes) + 1
        for part in (rows[is_left], rows[~is_left]):
            waiting.append((len(nodes), part))
            nodes.append(TreeNode(_count(labels[part])))
    return nodes


def _count(labels: NDArray[np.int64]) -> Counts:
    return np.bincount(labels, minlength=CLASSES).astype(np.float64)


def best_split(
    images: NDArray[np.uint8], labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[int, int] | None:
    """The pixel and threshold that leave the purest halves (Gini); None where all are one digit or look the same."""
    if (labels == labels[0]).all():
        return None
    order = rng.permutation(PIXELS)
    for first in range(0, PIXELS, CANDIDATES):
        pixels = order[first : first + CANDIDATES]
        table = np.zeros((len(pixels), LEVELS, CLASSES))
        np.add.at(table, (np.arange(len(pixels)), images[:, pixels], labels[:, None]), 1)
        left = table.cumsum(axis=1)
        right = left[:, -1:] - left
        sizes = left.sum(axis=2), right.sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            purity = (left**2).sum(axis=2) / sizes[0] + (right**2).sum(axis=2) / sizes[1]
        purity[(sizes[0] == 0) | (sizes[1] == 0)] = -1
        if purity.max() >= 0:
            pixel, level = np.unravel_index(purity.argmax(), purity.shape)
            return int(pixels[pixel]), int(level)
    return None


def grow_forest(digits: Digits, trees: int = TREES) -> list[list[TreeNode]]:
    """Trees on what is not held out."""
    rng = np.random.default_rng(SEED)
    images, labels = digits.images[~digits.held_out].astype(np.uint8), digits.labels[~digits.held_out]
    return [grow(images, labels, rng) for _ in range(trees)]


def export_forest(forest: list[list[TreeNode]]) -> onnx.ModelProto:
    """Write the trees as a graph from ``image`` to ``scores``, the mean of the trees' shares."""
    table: dict[str, Any] = {}

    def add(**values: Any) -> None:
        for name, value in values.items():
            table.setdefault(name, []).append(value)

    for tree, nodes in enumerate(forest):
        for number, node in enumerate(nodes):
            add(
                nodes_treeids=tree,
                nodes_nodeids=number,
                nodes_modes="LEAF" if node.is_leaf else "BRANCH_LEQ",
                nodes_featureids=node.pixel,
                nodes_values=float(node.threshold),
                nodes_truenodeids=max(node.left, 0),
                nodes_falsenodeids=max(node.right, 0),
            )
            for digit in np.flatnonzero(node.counts) if node.is_leaf else ():
                share = float(node.counts[digit] / node.counts.sum() / len(forest))
                add(class_treeids=tree, class_nodeids=number, class_ids=int(digit), class_weights=share)
    ensemble = helper.make_node(
        "TreeEnsembleClassifier",
        ["image"],
        ["digit", "scores"],
        domain="ai.onnx.ml",
        classlabels_int64s=list(range(CLASSES)),
        post_transform="NONE",
        **table,
    )
    graph = helper.make_graph(
        [ensemble],
        "digits-forest",
        inputs=[helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", PIXELS])],
        outputs=[helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", TREE_OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets, producer_name="headrace")
    onnx.checker.check_model(model, full_check=True)
    return model


def forest_scores(forest: list[list[TreeNode]], images: NDArray[np.float32]) -> Counts:
    """What the trees say, walked one by one: what the graph is held against."""
    found = np.zeros((len(images), CLASSES))
    for nodes in forest:
        for row, image in enumerate(images):
            node = nodes[0]
            while not node.is_leaf:
                node = nodes[node.left if image[node.pixel] <= node.threshold else node.right]
            found[row] += node.counts / node.counts.sum() / len(forest)
    return found


def main() -> None:
    """Grow the forest, write it, and say how often it is right."""
    parser = argparse.ArgumentParser(description="Train the digit forest and write it as ONNX.")
    parser.add_argument("--data", type=Path, default=FLEET / "digits.npz")
    parser.add_argument("--out", type=Path, default=FLEET / "models" / "digits-forest" / "1")
    options = parser.parse_args()
    digits = load_digits(options.data)
    forest = grow_forest(digits)
    model = export_forest(forest)
    images, labels = digits.images[digits.held_out], digits.labels[digits.held_out]
    (scores,) = map(np.asarray, ReferenceEvaluator(model).run(["scores"], {"image": images}))
    if not np.allclose(scores, forest_scores(forest, images), atol=1e-5):
        raise SystemExit("the graph does not say what the trees say")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "model.onnx"
    onnx.save(model, path)
    accuracy = float((scores.argmax(axis=1) == labels).mean())
    nodes = sum(map(len, forest))
    print(f"{len(forest)} trees, {nodes:,} nodes: {accuracy:.4f} of the held-out images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
