"""What becomes of a batch that failed, as pure functions.

A batch that raised is halved until the request that fails by itself is found: one bad row in 32 costs at most ten
further runs. A batch whose engine died under it makes all its requests suspects, which run alone. A request that was
launched `MAX_LAUNCHES` times without an outcome is poison.
"""

from __future__ import annotations

from typing import TypeVar

MAX_LAUNCHES = 3

_T = TypeVar("_T")


def halves(batch: list[_T]) -> list[list[_T]]:
    """Split a batch of at least two into the two groups to run next."""
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]


def singles(batch: list[_T]) -> list[list[_T]]:
    """Each member alone."""
    return [[member] for member in batch]


def is_poison(launches: int) -> bool:
    """Whether a request that again took its engine down has had its chances."""
    return launches >= MAX_LAUNCHES
