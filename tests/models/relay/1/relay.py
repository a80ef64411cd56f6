"""A step of test pipelines: passes rows on, and fails on request."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

RAISE, SLOW, HANG = 1, 2, 3


class Relay:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Add 1 to the second column; `score` is made of the third. The fourth counts down to the step that fails."""
        rows = inputs["row"].copy()
        due = rows[:, 3] == 0
        if (due & (rows[:, 0] == RAISE)).any():
            msg = "asked to raise"
            raise ValueError(msg)
        if (due & (rows[:, 0] == SLOW)).any():
            time.sleep(1.5)
        if (due & (rows[:, 0] == HANG)).any():
            time.sleep(5)  # longer than its callers wait; for ever, only stopping would take longer
        rows[:, 1] += 1
        rows[:, 3] -= 1
        high = rows[:, 2]
        return {"row": rows, "score": np.stack([high, 1 - high, 0 * high], axis=1).astype(np.float32)}
