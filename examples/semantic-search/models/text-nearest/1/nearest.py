"""The last step: the nearest of some thousand sentences, by brute force.

All vectors have length 1, so the product of two is the cosine of the angle between them. One product compares a text
with the whole index: for some thousand sentences that takes less than a millisecond, and finds the true nearest, which
an approximate index need not. Each text of a batch has a product of its own: a library multiplies one vector in another
order than several at once, and scores would differ in their last bits by who shared the batch.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace import InvalidRequest
from workers.backends.base import ModelContext

DEFAULT_K: Final = 5
MOST: Final = 100


class Nearest:
    """The handler that `model.yaml` names."""

    def __init__(self) -> None:
        self._vectors: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._sentences: NDArray[Any] = np.zeros(0, object)
        self._topics: NDArray[Any] = np.zeros(0, object)

    def load(self, context: ModelContext) -> None:
        """Read the index that `build_index.py` put beside this file."""
        with np.load(context.folder / "index.npz", allow_pickle=False) as index:
            self._vectors = index["vectors"]
            self._sentences, self._topics = (index[name].astype(object) for name in ("sentences", "topics"))

    def infer(self, inputs: dict[str, NDArray[Any]], parameters: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Answer each `embedding` with the `sentence`, `topic` and `score` of the `k` nearest."""
        k = parameters.get("k", DEFAULT_K)
        if not isinstance(k, int) or not 1 <= k <= MOST:
            msg = f"parameter k is a whole number from 1 to {MOST}, not {k!r}"
            raise InvalidRequest(msg)
        scores = np.stack([self._vectors @ embedding for embedding in inputs["embedding"]])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return {
            "sentence": self._sentences[best],
            "topic": self._topics[best],
            "score": np.take_along_axis(scores, best, axis=1),
        }
