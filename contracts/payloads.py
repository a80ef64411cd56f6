"""Which tensors of a message travel as references. Pure.

A tensor above the limit does; and when what is left would still not fit into a record, the largest ones go first until
it does. References cost a store's round trip, so nothing is stored that need not be.
"""

from __future__ import annotations

from collections.abc import Sequence

URL_VARIABLE = "HEADRACE_BLOBS__URL"
"""The setting that names the store."""
ENVELOPE_BYTES = 4096
"""Names, shapes, references and parameters beside the tensors' own bytes, roughly."""


def to_be_stored(sizes: Sequence[int], *, each: int, total: int) -> frozenset[int]:
    """Indexes of the tensors to store, given all their sizes: those above `each`, and as many as `total` asks for."""
    chosen = {index for index, size in enumerate(sizes) if size > each}
    left = sum(size for index, size in enumerate(sizes) if index not in chosen)
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True):
        if left + ENVELOPE_BYTES <= total:
            break
        if index not in chosen and sizes[index]:
            chosen.add(index)
            left -= sizes[index]
    return frozenset(chosen)
