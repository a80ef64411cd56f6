"""What becomes of a batch that failed, as pure functions.

A batch that raised is halved until the request that fails by itself is found: one bad row in 32 costs at most ten
further runs. A batch whose engine died under it makes all its requests suspects, which run alone: nothing else is in
the engine meanwhile, so that a death has one possible cause. A request whose launches were lost `MAX_LAUNCHES` times,
the last `MIN_ALONE` of them alone, is poison; one that was beside a killer is not.
"""

from __future__ import annotations

from typing import TypeVar

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


def is_poison(lost: int, lost_alone: int) -> bool:
    """Whether a request had its chances: how many of its launches ended with the engine, or worker, and how many of
    those it was alone in.
    """
    return lost >= MAX_LAUNCHES and lost_alone >= MIN_ALONE
