"""A timer that is set anew all the time, and nearly always for about the same moment."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_TOLERANCE_SECONDS = 0.0002


class Alarm:
    """Calls back at a moment; setting it forgets the one before, unless that will do."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf

    def set(self, now: float, at: float) -> None:
        """Ring at `at`, in seconds of the clock that says that it is `now`."""
        if self._timer is not None:
            if now < self._at <= at + _TOLERANCE_SECONDS:
                return
            self._timer.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_later(max(at - now, 0.0), self._ring)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
