"""Choose how sure the linear classifier must be for its answer to stand.

The images that were held out judge the cascade, so they may not choose its threshold; and on images that a model was
trained on it is surer than it has a right to be. So both models are trained anew five times, each time without a
fifth of the training images, and asked about that fifth. What they say there is what they would say of images that
they have not seen.

    python examples/digits-ensemble/choose_threshold.py       # prints a table and the threshold; about a minute

The threshold is the one at which the cascade is right most often; of several, the lowest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from deploy.fleet.train_digits import (
    CLASSES,
    FLEET,
    Digits,
    export_convolutional,
    export_linear,
    load_digits,
    train_convolutional,
    train_linear,
)

FOLDS: Final = 5
SEED: Final = 5
THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)

Scores = NDArray[np.float32]


class Row(NamedTuple):
    """What a threshold means: the share of images that the small model settles, and how many are named rightly."""

    threshold: float
    saved: float
    accuracy: float


def unseen_scores(digits: Digits) -> tuple[Scores, Scores, NDArray[np.int64]]:
    """What each model says about training images that it was trained without, and their labels."""
    training = np.flatnonzero(~digits.held_out)
    fold_of = np.random.default_rng(SEED).permutation(len(training)) % FOLDS
    small, large = (np.zeros((len(training), CLASSES), np.float32) for _ in range(2))
    for fold in range(FOLDS):
        rows = training[fold_of == fold]
        hidden = digits.held_out.copy()
        hidden[rows] = True
        rest = replace(digits, held_out=hidden)
        small[fold_of == fold] = _scores(export_linear(train_linear(rest)), digits.images[rows])
        large[fold_of == fold] = _scores(export_convolutional(train_convolutional(rest)), digits.images[rows])
    return small, large, digits.labels[training]


def _scores(model: ModelProto, images: NDArray[np.float32]) -> Scores:
    (found,) = map(np.asarray, ReferenceEvaluator(model).run(["scores"], {"image": images}))
    return found.astype(np.float32)


def cascade_table(small: Scores, large: Scores, labels: NDArray[np.int64]) -> list[Row]:
    """Every threshold; the last row, threshold infinity, asks the large model every time."""
    sure = small.max(axis=1)
    rows = []
    for threshold in (*THRESHOLDS, np.inf):
        named = np.where(sure < threshold, large.argmax(axis=1), small.argmax(axis=1))
        rows.append(Row(float(threshold), float((sure >= threshold).mean()), float((named == labels).mean())))
    return rows


def choose(table: list[Row]) -> Row:
    """The threshold at which the cascade is right most often; of several, the lowest."""
    return max(table, key=lambda row: row.accuracy)


def main() -> None:
    """Print the table and the choice."""
    table = cascade_table(*unseen_scores(load_digits(FLEET / "digits.npz")))
    print("threshold   settled by the linear model   accuracy")
    for row in table:
        print(f"{row.threshold:9.2f}   {row.saved:28.1%}   {row.accuracy:8.2%}")
    print(f"choice: {choose(table).threshold}")


if __name__ == "__main__":
    main()
