"""The last step: the lines of a page together again."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEAST_SCORE: Final = 0.5  # below it, a line is more likely a stain than text


class Text:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer with the page's whole `text`, and each `line` of it with its `box` and `score`."""
        kept = inputs["score"] >= LEAST_SCORE
        lines = inputs["text"][kept]
        whole = np.empty(1, object)
        whole[0] = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
        return {
            "text": whole,
            "line": lines[None],
            "box": inputs["box"][kept][None],
            "score": inputs["score"][kept][None],
        }
