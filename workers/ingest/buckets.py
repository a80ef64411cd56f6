"""The batch sizes that a model's engine is planned with.

Latency is learned per bucket, graphs are captured per bucket and padding fills up to one. Small batches get one each,
larger ones grow by a third or a half, so that a padded batch wastes at most a third above 16 rows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from contracts.serving_specs import BatchingSpec

_SMALL = (1, 2, 4, 8, 16, 24)


def bucket_sizes(max_rows: int, preferred: Iterable[int] = ()) -> tuple[int, ...]:
    """The sizes up to `max_rows`, ascending; `preferred` replaces the usual ones. The last is the largest batch."""
    chosen = sorted({size for size in preferred if 1 <= size <= max_rows})
    if chosen:
        return tuple(chosen)
    sizes = [size for size in _SMALL if size < max_rows]
    size = 32
    while size < max_rows:
        sizes.append(size)
        if size + size // 2 < max_rows:
            sizes.append(size + size // 2)
        size *= 2
    return (*sizes, max_rows)


def batch_sizes(batching: BatchingSpec) -> tuple[int, ...]:
    """The sizes that a model's batches are planned with."""
    if batching.batch_invariant:
        return (batching.max_batch_size,)
    return bucket_sizes(batching.max_batch_size, batching.preferred_batch_sizes)


class Buckets:
    """Rounds batch sizes up and down to buckets."""

    __slots__ = ("sizes", "top")

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.top = sizes[-1]

    def index(self, rows: int) -> int:
        """The number of the smallest bucket that holds `rows`; the last one for more than it holds."""
        return min(bisect_left(self.sizes, rows), len(self.sizes) - 1)

    def up(self, rows: int) -> int:
        """The size of the smallest bucket that holds `rows`; the largest for more than it holds."""
        return self.sizes[self.index(rows)]

    def down(self, rows: int) -> int:
        """The largest bucket that `rows` fill; `rows` itself where they fill none."""
        at = bisect_right(self.sizes, rows)
        return self.sizes[at - 1] if at else rows

    def below(self, rows: int) -> int:
        """The next smaller batch worth trying: the largest bucket below `rows`, at least 1."""
        at = bisect_left(self.sizes, rows)
        return self.sizes[at - 1] if at else max(1, rows // 2)


def padded_tail(spec: tuple[int, ...], tail: tuple[int, ...], lengths: Sequence[int]) -> tuple[int, ...]:
    """A row's shape with its open dimensions filled up to a bucket; longer ones stay as they are."""
    return tuple(
        size if fixed != -1 else next((bucket for bucket in lengths if bucket >= size), size)
        for fixed, size in zip(spec, tail, strict=True)
    )
