"""The first step: needs a core for some microseconds and no device."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.backends.base import ModelContext

LENGTH: Final = 64  # pieces; what a text has beyond is left out


class Tokens:
    """The handler that `model.yaml` names."""

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def load(self, context: ModelContext) -> None:
        """Read the vocabulary that `build_index.py` put beside this file."""
        self._tokenizer = Tokenizer.from_file(str(context.folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(LENGTH)
        # Every row is as long, whoever it shares a batch with, so that its numbers do not depend on them.
        self._tokenizer.enable_padding(length=LENGTH)

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer each `text` with `input_ids`, `attention_mask`, and the `count` of its pieces."""
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in inputs["text"]]
        found = self._tokenizer.encode_batch(texts)
        mask = np.array([encoding.attention_mask for encoding in found], np.int64)
        return {
            "input_ids": np.array([encoding.ids for encoding in found], np.int64),
            "attention_mask": mask,
            "count": mask.sum(axis=1),
        }
