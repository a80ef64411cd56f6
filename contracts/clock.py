"""The one place where time is read.

Durations and deadlines are counted on a monotonic clock that goes on while the machine is suspended, so that a laptop
which slept past its lease knows it. Wall time is only for stamps that leave the process. Tests pass their own clock.
"""

from __future__ import annotations

import time
from typing import Protocol

# CLOCK_MONOTONIC stands still during suspend on Linux; CLOCK_BOOTTIME does not. Elsewhere the plain one must do.
_SUSPEND_AWARE = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    """Reads time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never steps back."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970-01-01T00:00:00Z by the machine's wall clock."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds on a clock that counts suspend where the platform has one."""
        return time.monotonic() if _SUSPEND_AWARE is None else time.clock_gettime(_SUSPEND_AWARE)

    def unix_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000  # noqa: TID251 - this is the door
