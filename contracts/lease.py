"""Lease arithmetic: how long a holder may believe in what it holds.

The server ends a lease `ttl` after it *executed* the last renewal. The holder cannot know when that was, only when it
sent the call; so it counts from the sending, on its own monotonic clock (which goes on during suspend), and stops
`margin` earlier. Its belief is then a subset of the server's grant whatever the network or either wall clock does.
A holder in doubt launches nothing; finishing and publishing what is done stays harmless.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from contracts.errors import ConfigurationError


def check_timing(*, ttl_seconds: float, renew_seconds: float, margin_seconds: float) -> None:
    """Raise ConfigurationError unless a holder that misses one renewal still trusts its lease at the next."""
    if min(ttl_seconds, renew_seconds, margin_seconds) <= 0:
        msg = "ttl, renew interval and margin of a lease must be above 0"
        raise ConfigurationError(msg)
    if ttl_seconds < 3 * renew_seconds:
        msg = (
            f"ttl {ttl_seconds} s must be at least three times the renew interval {renew_seconds} s, or one lost "
            "renewal ends the lease"
        )
        raise ConfigurationError(msg)
    if margin_seconds >= ttl_seconds - renew_seconds:
        msg = (
            f"margin {margin_seconds} s must be below ttl - renew interval ({ttl_seconds - renew_seconds} s), or the "
            "holder never trusts its lease"
        )
        raise ConfigurationError(msg)


def check_node_timing(*, heartbeat_seconds: float, suspect_seconds: float, dead_seconds: float) -> None:
    """Raise ConfigurationError unless one lost heartbeat does not make a node suspect, nor a suspicion a death."""
    if suspect_seconds < 2 * heartbeat_seconds:
        msg = f"suspect {suspect_seconds} s must be at least twice the heartbeat {heartbeat_seconds} s"
        raise ConfigurationError(msg)
    if dead_seconds < 3 * suspect_seconds:
        msg = f"dead {dead_seconds} s must be at least three times suspect {suspect_seconds} s"
        raise ConfigurationError(msg)


@dataclass(slots=True)
class TrustWindow:
    """Until when a holder trusts one lease. Starts in doubt; every successful renewal moves the deadline on."""

    ttl_seconds: float
    margin_seconds: float
    deadline: float = -math.inf
    """On the holder's monotonic clock; nothing may be launched at or after it."""

    def deadline_after(self, attempt_started: float, granted_seconds: float | None = None) -> float:
        """The deadline that a successful call *sent* at `attempt_started` gives.

        Pass what the server said is left of the lease as `granted_seconds` when that may be less than the ttl.
        """
        granted = self.ttl_seconds if granted_seconds is None else min(self.ttl_seconds, granted_seconds)
        return attempt_started + granted - self.margin_seconds

    def renewed(self, attempt_started: float, granted_seconds: float | None = None) -> float:
        """Take a successful renewal into account; a late answer to an early call never shortens the trust."""
        self.deadline = max(self.deadline, self.deadline_after(attempt_started, granted_seconds))
        return self.deadline

    def end(self) -> None:
        """The server said that the lease is over: doubt at once."""
        self.deadline = -math.inf

    def is_trusted(self, now: float) -> bool:
        """Whether something may be launched at `now`."""
        return now < self.deadline

    def remaining(self, now: float) -> float:
        """Seconds of trust left, 0 when in doubt."""
        return max(0.0, self.deadline - now)
