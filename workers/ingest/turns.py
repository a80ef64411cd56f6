"""Whose batch is next while the models of an engine share it: pure.

Each model is charged the engine seconds that its batches take, and whoever was charged least goes first: models that
always have work get equal time, however long their batches are. A model that had nothing waiting saves nothing up; it
begins level with the one that was served last. Where a batch would be late if another went first it may go ahead of
its turn, but only as far as `CREDIT_SECONDS` beyond the model that was charged least: nobody starves for urgency.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

CREDIT_SECONDS = 0.1


class Claimant(NamedTuple):
    """A model with something waiting, and when its most urgent batch must start to be in time."""

    model: int
    latest: float


class Turns:
    """Keeps the accounts of one engine's models."""

    def __init__(self) -> None:
        self._charged: list[float] = []
        self._waiting: Collection[int] = ()
        self._level = 0.0

    def join(self) -> int:
        """One more model; its number."""
        self._charged.append(self._level)
        return len(self._charged) - 1

    def order(self, claimants: Sequence[Claimant], horizon: float) -> list[int]:
        """The models in the order in which they may launch; who must start before `horizon` is urgent."""
        charged = self._charged
        for model, _ in claimants:
            if model not in self._waiting and charged[model] < self._level:
                charged[model] = self._level
        self._waiting = {model for model, _ in claimants}
        allowed = min((charged[model] for model, _ in claimants), default=0.0) + CREDIT_SECONDS

        def rank(claimant: Claimant) -> tuple[bool, float]:
            model, latest = claimant
            is_urgent = latest < horizon and charged[model] <= allowed
            return (not is_urgent, latest if is_urgent else charged[model])

        return [model for model, _ in sorted(claimants, key=rank)]

    def charge(self, model: int, seconds: float) -> None:
        """A batch of this model is launched and expected to take so long."""
        self._level = max(self._level, self._charged[model])
        self._charged[model] += seconds

    def correct(self, model: int, seconds: float) -> None:
        """A batch took so much more, or less, than expected."""
        self._charged[model] += seconds
