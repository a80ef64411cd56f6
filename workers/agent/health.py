"""Whether a GPU may be used: pure, from what the driver reported and what was read.

    Xid 13, 31, 43, 45, 68, 109      the application's own fault: the engine pays; three in five minutes: unhealthy
    any other Xid, double-bit error,
    failed row remapping             unhealthy
    device lost, Xid 79              lost: its leases end
    slowdown by heat or power        degraded: only a worse choice
    an event without a device        counts for all of them

A device never gets better by itself, except from degraded: an error that came once comes again, so only a restart of
the agent, which looks at the device anew, makes it ok.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from contracts.pool import Health
from workers.devices.nvml import SLOWDOWN_BITS, GpuEvent

APPLICATION_XIDS: Final = frozenset({13, 31, 43, 45, 68, 109})
LOST_XID: Final = 79
FAULTS_TOLERATED: Final = 2
FAULT_WINDOW_SECONDS: Final = 300.0
_order: Final[tuple[Health, ...]] = ("ok", "degraded", "faulted", "unhealthy", "lost")


@dataclass(frozen=True, slots=True)
class Reading:
    """What polling a device gave."""

    is_lost: bool = False
    clock_reasons: int = 0
    double_bit_errors: int = 0
    remap_failed: bool = False


def worse(first: Health, second: Health) -> Health:
    """The worse of two."""
    return max(first, second, key=_order.index)


@dataclass(slots=True)
class DeviceHealth:
    """The memory of one device. `latched` never improves; being degraded comes and goes."""

    latched: Health = "ok"
    is_slow: bool = False
    double_bit_errors: int | None = None
    faults: list[float] = field(default_factory=list)

    @property
    def health(self) -> Health:
        """What to tell the pool."""
        return worse(self.latched, "degraded" if self.is_slow else "ok")

    def on_event(self, event: GpuEvent, now: float) -> Health:
        """Take an event for this device, or for all of them, into account."""
        self.latched = worse(self.latched, self._judge(event, now))
        return self.health

    def on_reading(self, reading: Reading) -> Health:
        """Take a poll into account. Errors that were there at the first one are history."""
        if reading.is_lost:
            self.latched = "lost"
            return self.health
        before = self.double_bit_errors
        self.double_bit_errors = reading.double_bit_errors
        if (before is not None and reading.double_bit_errors > before) or reading.remap_failed:
            self.latched = worse(self.latched, "unhealthy")
        self.is_slow = bool(reading.clock_reasons & SLOWDOWN_BITS)
        return self.health

    def _judge(self, event: GpuEvent, now: float) -> Health:
        if event.xid is None:
            # A recovery action is recorded by the caller; the error behind it comes as an event of its own.
            return "ok" if event.recovery_action else "unhealthy"
        if event.xid == LOST_XID:
            return "lost"
        if event.xid not in APPLICATION_XIDS:
            return "unhealthy"
        self.faults = [*(then for then in self.faults if now - then < FAULT_WINDOW_SECONDS), now]
        return "unhealthy" if len(self.faults) > FAULTS_TOLERATED else "ok"
