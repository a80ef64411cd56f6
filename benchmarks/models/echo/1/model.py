"""Answers each row with itself."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


class Model:
    """What the path costs, and nothing else."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The tensor `row` as it came."""
        return {"row": inputs["row"]}
