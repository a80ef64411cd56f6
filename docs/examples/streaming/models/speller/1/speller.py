"""Spells words: each step yields the next letter of every word of the batch that is not at its end."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np


class Speller:
    """A streaming model."""

    def infer(self, inputs: dict[str, Any]) -> Generator[Any, frozenset[int], None]:
        """Yield letters for the rows that have some left, until none has or nobody waits."""
        words = [word.decode() for word in inputs["word"]]
        open_rows = {row for row, word in enumerate(words) if word}
        step = 0
        while open_rows:
            last = sorted(row for row in open_rows if len(words[row]) == step + 1)
            more = sorted(open_rows - {*last})
            gone: set[int] = set()
            if more:
                gone |= yield self.letters(words, more, step), more
            if last:
                gone |= yield self.letters(words, last, step), last, True
            open_rows -= gone | {*last}
            step += 1

    def letters(self, words: list[str], rows: list[int], step: int) -> dict[str, Any]:
        """The letter of each row at a step."""
        return {"letter": np.array([words[row][step] for row in rows], dtype=object)}
