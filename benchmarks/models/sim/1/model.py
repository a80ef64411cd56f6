"""A device that takes 8 ms for a batch and 20 µs more for each of its rows, whatever else the machine does.

It sleeps, so the host is free meanwhile as it is beside a real device, and spins for the last part of a millisecond,
because a sleeper is woken up to 0.1 ms late. The row comes back as it was, so exchanged rows show.
"""

from __future__ import annotations

import time
from typing import Any, Final

from numpy.typing import NDArray

BATCH_SECONDS: Final = 0.008
ROW_SECONDS: Final = 0.000_020
_SPIN_SECONDS: Final = 0.000_3


class Simulated:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer the tensor `row` with itself, late."""
        until = time.perf_counter() + BATCH_SECONDS + ROW_SECONDS * len(inputs["row"])
        time.sleep(until - time.perf_counter() - _SPIN_SECONDS)
        while time.perf_counter() < until:
            pass
        return {"row": inputs["row"]}
