"""Whether the engine is wedged: pure, from how long its running batch has been at it.

A batch that runs ten times as long as nearly all of the last batches did, and for no less than a floor, will not come
back: a deadlock in a library, a kernel that spins, a handler that waits for what never comes. While nothing is known of
the model's speed the limit is a setting of its own, since a first batch may take long for good reasons.

Age counts only while somebody looks: after a suspend of the machine, or a stop of this process, the time that passed
says nothing about the engine.
"""

from __future__ import annotations

from collections import deque

FACTOR = 10.0
MIN_SAMPLES = 5
_WINDOW = 20
_MOST_PER_LOOK = 1.0  # seconds that one look may add to a batch's age


class Watchdog:
    """Judges the batch that runs; a batch is known by a number of its own."""

    __slots__ = ("_age", "_floor", "_looked", "_recent", "_running", "_unmeasured")

    def __init__(self, *, floor_seconds: float, unmeasured_seconds: float) -> None:
        self._floor = floor_seconds
        self._unmeasured = max(floor_seconds, unmeasured_seconds)
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._running: int | None = None
        self._looked = 0.0
        self._age = 0.0

    def finished(self, seconds: float) -> None:
        """A batch took this long to compute."""
        self._recent.append(seconds)

    @property
    def limit(self) -> float:
        """Seconds that a batch may run."""
        if len(self._recent) < MIN_SAMPLES:
            return self._unmeasured
        return max(self._floor, FACTOR * sorted(self._recent)[-2])  # one hiccup of the machine says nothing

    def is_wedged(self, running: int | None, now: float) -> bool:
        """Whether the batch that runs now has had its time; None when none runs. To be asked several times a second."""
        if running is None or running != self._running:
            self._running, self._age = running, 0.0
        else:
            self._age += min(now - self._looked, _MOST_PER_LOOK)
        self._looked = now
        return running is not None and self._age > self.limit
