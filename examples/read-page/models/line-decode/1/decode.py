"""Connectionist temporal classification, read greedily.

The recognizer names a character for every eight columns of pixels. A character that is wider is named again and again,
a blank in between separates two that are alike; so repeats go first, then blanks.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workers.backends.base import ModelContext

BLANK: Final = 0


class Decode:
    """The handler that `model.yaml` names."""

    def __init__(self) -> None:
        self._characters: list[str] = []

    def load(self, context: ModelContext) -> None:
        """Read the alphabet that `prepare.py` took out of the recognizer."""
        alphabet = json.loads((context.folder / "characters.json").read_text(encoding="utf-8"))
        self._characters = ["", *alphabet, " "]

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer the columns' `character` and `likelihood` with `text` and `score`."""
        lines = [self._line(*columns) for columns in zip(inputs["character"], inputs["likelihood"], strict=True)]
        texts = np.empty(len(lines), object)
        texts[:] = [text for text, _ in lines]
        return {"text": texts, "score": np.array([score for _, score in lines], np.float64)}

    def _line(self, characters: NDArray[np.int64], likelihoods: NDArray[np.float32]) -> tuple[str, float]:
        is_new = np.append(True, characters[1:] != characters[:-1])
        is_read = is_new & (characters != BLANK)
        if not is_read.any():
            return "", 0.0
        text = "".join(self._characters[character] for character in characters[is_read])
        return text, float(likelihoods[is_read].astype(np.float64).mean())
