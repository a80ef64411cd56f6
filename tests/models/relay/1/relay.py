"""A step of test pipelines: passes rows on, and fails on request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace import InvalidRows

RAISE, SLOW, HANG, FLAKY, REFUSE, WEDGE = 1, 2, 3, 4, 5, 6


class Relay:
    """The handler that `model.yaml` names."""

    def __init__(self) -> None:
        self._tried: Counter[float] = Counter()

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Add 1 to the second column; `score` is made of the third. The fourth counts down to the step that fails."""
        rows = inputs["row"].copy()
        due = rows[:, 3] == 0
        if (due & (rows[:, 0] == RAISE)).any():
            msg = "asked to raise"
            raise ValueError(msg)
        refused = np.flatnonzero(due & (rows[:, 0] == REFUSE))
        if refused.size:
            raise InvalidRows(dict.fromkeys(refused, "asked to refuse"))
        if (due & (rows[:, 0] == SLOW)).any():
            time.sleep(1.5)
        if (due & (rows[:, 0] == HANG)).any():
            time.sleep(5)  # longer than its callers wait; for ever, only stopping would take longer
        if (due & (rows[:, 0] == WEDGE)).any():
            threading.Event().wait()
        for value, times in rows[due & (rows[:, 0] == FLAKY), 1:3].tolist():  # the third column: how often it fails
            self._tried[value] += 1
            if self._tried[value] <= times:
                msg = f"failed {self._tried[value]} times"
                raise ValueError(msg)
        rows[:, 1] += 1
        rows[:, 3] -= 1
        high = rows[:, 2]
        return {"row": rows, "score": np.stack([high, 1 - high, 0 * high], axis=1).astype(np.float32)}
