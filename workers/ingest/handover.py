"""When the next batch is closed while one runs: a newsvendor's choice, from what the last batches taught.

Rows that come after the batch was closed wait for a whole further batch. A batch that is closed too late reaches an
engine that has waited for it, but for no longer than a handover takes: when the engine is found free the batch is
closed at once. So the best moment depends on how long a handover takes and on how well the end of a batch is predicted.
Both are measured, and the lead is the one that would have cost least over the last batches.
"""

from __future__ import annotations

from collections import deque

import numpy as np

_WINDOW = 64  # batches
_EVERY = 16
_UNKNOWN_HANDOVER = 0.0005
_FIRST_LEAD = 0.001
_MOST = 0.005
_NEVER = -1.0  # the lead that has a batch closed when the engine is free
_IDLE_WEIGHT = 2.0
"""What a second of a waiting engine costs, in seconds by which a batch was closed early: it delays all that follow."""


class Handover:
    """How long it takes to give an engine a batch, and how long before the engine frees that is best done."""

    def __init__(self) -> None:
        self.seconds = _UNKNOWN_HANDOVER
        self._lead = _FIRST_LEAD
        self._taken: deque[float] = deque(maxlen=20)
        self._errors: deque[float] = deque(maxlen=_WINDOW)
        self._until_chosen = _EVERY

    def took(self, seconds: float) -> None:
        """A batch for an idle engine was back so much later than its computing explains."""
        self._taken.append(max(0.0, seconds))
        self.seconds = sorted(self._taken)[len(self._taken) // 2]

    def ended(self, error: float) -> None:
        """A batch ended so much later than it was expected to."""
        self._errors.append(error)
        self._until_chosen -= 1

    @property
    def lead(self) -> float:
        """How long before the engine frees the next batch is closed; chosen when somebody asks, which is under load."""
        if self._until_chosen <= 0:
            self._until_chosen = _EVERY
            self._lead = self._best()
        return self._lead

    def _best(self) -> float:
        errors, needed = np.sort(self._errors), self.seconds
        marks = errors[len(errors) * np.arange(16) // 16]
        leads = np.concatenate(([_NEVER], -marks, needed - marks))
        slack = needed - leads[:, np.newaxis] - errors  # how long the engine waits, negative: how early it was closed
        costs = np.maximum(-slack, 0.0).sum(1) + _IDLE_WEIGHT * np.clip(slack, 0.0, needed).sum(1)
        return min(_MOST, float(leads[costs.argmin()]))
