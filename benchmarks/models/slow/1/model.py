"""A device that takes 16 ms for a batch and 20 µs more for each of its rows: at most 1,900 rows per second.

Slow enough that a small machine can ask twice as much of it as it can do, and still have time to answer everybody.
"""

from __future__ import annotations

import time
from typing import Any, Final

from numpy.typing import NDArray

BATCH_SECONDS: Final = 0.016
ROW_SECONDS: Final = 0.000_020


class Slow:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer the tensor `row` with itself, late."""
        time.sleep(BATCH_SECONDS + ROW_SECONDS * len(inputs["row"]))
        return {"row": inputs["row"]}
