"""A timer that is set anew all the time, and nearly always for about the same moment."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_TOLERANCE_SECONDS = 0.0002
_EARLY_SECONDS = 0.001  # timers count whole milliseconds, and ring before their time as often as after it


class Alarm:
    """Calls back at a moment; setting it forgets the one before, unless that will do."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at = -math.inf

    def set(self, now: float, at: float) -> None:
        """Ring at `at`, in seconds of the clock that says that it is `now`."""
        if self._timer is not None:
            if now < self._at <= at + _TOLERANCE_SECONDS:
                return
            self._timer.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_later(max(at - now, 0.0), self._rings)

    def _rings(self) -> None:
        self._timer = None
        self._ring()

    def moment(self, now: float) -> float:
        """`now`, or the moment for which it has just rung too early: to ask for that once more would be in vain."""
        has_rung = self._timer is None and now < self._at <= now + _EARLY_SECONDS
        return self._at if has_rung else now

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at = -math.inf
