"""What becomes of a batch that failed, as pure functions.

A batch that raised is halved until the request that fails by itself is found: one bad row in 32 costs at most ten
further runs. A model that names the rows that it refuses saves even those: their requests end, the others run again
together. A batch whose engine died under it makes all its requests suspects, which run alone: nothing else is in
the engine meanwhile, so that a death has one possible cause. A request whose launches were lost `MAX_LAUNCHES` times,
the last `MIN_ALONE` of them alone, is poison; one that was beside a killer is not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

from workers.link import InvalidRow

MAX_LAUNCHES = 3
MIN_ALONE = 2

_T = TypeVar("_T")


def halves(batch: list[_T]) -> list[list[_T]]:
    """Split a batch of at least two into the two groups to run next."""
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]


def singles(batch: list[_T]) -> list[list[_T]]:
    """Each member alone."""
    return [[member] for member in batch]


def owners(counts: Sequence[int], rows: Iterable[InvalidRow]) -> dict[int, list[InvalidRow]]:
    """Rows of a batch by the number of the request that each belongs to, and counted from that request's first; the
    requests have so many rows. What belongs to none only filled the batch.
    """
    found: dict[int, list[InvalidRow]] = {}
    ends = list(accumulate(counts))
    for invalid in rows:
        number = bisect_right(ends, invalid.row)
        if number < len(ends):
            first = ends[number] - counts[number]
            found.setdefault(number, []).append(InvalidRow(invalid.row - first, invalid.why))
    return found


def is_poison(lost: int, lost_alone: int) -> bool:
    """Whether a request had its chances: how many of its launches ended with the engine, or worker, and how many of
    those it was alone in.
    """
    return lost >= MAX_LAUNCHES and lost_alone >= MIN_ALONE
