"""The model that tests and benchmarks run: it answers each row with a hash of that row's bytes.

Whoever sent the row can compute the same hash, so a lost, doubled or mixed-up row shows in the answer. It is cheap
enough (a few microseconds per batch) not to be what a benchmark measures. Every step maps different values to different
values while one lane changes, so any change within one 8-byte lane, a single flipped bit included, changes the hash;
other changes escape with a chance of about 2**-44. It is no protection against an adversary.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

COLUMNS: Final = 64
LANES: Final = COLUMNS // 2  # two float32 values make one lane of 8 bytes
# Powers of an odd number (2**64 over the golden ratio): odd, so that multiplying by one loses nothing; different for
# each lane, so that exchanged lanes show.
_odd: Final = np.array([pow(0x9E3779B97F4A7C15, lane, 2**64) for lane in range(1, LANES + 1)], np.uint64)
_half: Final = np.uint64(32)


def row_hash(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Hash each row of a float32 array [n, 64]; gives uint64 [n, 1]."""
    if rows.dtype != np.float32 or rows.shape[1:] != (COLUMNS,):
        msg = f"row_hash takes float32 [n, {COLUMNS}], not {rows.dtype} {list(rows.shape)}"
        raise ValueError(msg)
    lanes = np.ascontiguousarray(rows, "<f4").view("<u8")
    # A float's low bits are often zero, and multiplication only carries upwards: fold the upper half down first.
    mixed = lanes ^ (lanes >> _half)
    mixed *= _odd
    total: NDArray[np.uint64] = mixed.sum(axis=1, keepdims=True, dtype=np.uint64)
    total ^= total >> _half
    return total


class RowHash:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer the tensor `row` with the tensor `hash`."""
        return {"hash": row_hash(inputs["row"])}
