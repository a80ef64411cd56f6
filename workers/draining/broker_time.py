"""The broker's clock, as seen through its acknowledgements.

Deadlines count from the stamp that the broker put on a record, so they must be compared with the broker's clock, not
with this machine's. Every acknowledged response tells what that clock showed somewhere between its sending and its
acknowledgement; the median of the last ones is taken, good to half a round trip.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from contracts.adapters.kafka import Ack
from contracts.clock import Clock

_SAMPLES = 15
_EVERY = 8  # acknowledgements between two samples: the median is not worth computing for each


class BrokerTime:
    """Estimates the broker's wall clock; this machine's until something is known."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offsets: deque[float] = deque(maxlen=_SAMPLES)
        self._count = 0
        self.offset_ms = 0.0
        """The broker's clock minus ours."""

    def now_ms(self) -> int:
        """The broker's time in Unix milliseconds."""
        return self._clock.unix_ms() + round(self.offset_ms)

    def observe(self, ack: Ack, sent_ms: int) -> None:
        """Learn from an acknowledgement of a record sent at `sent_ms` by our clock; one without a stamp is ignored."""
        self._count += 1
        if ack.timestamp_ms <= 0 or (self._count % _EVERY and len(self._offsets) == _SAMPLES):
            return
        self._offsets.append(ack.timestamp_ms - (sent_ms + self._clock.unix_ms()) / 2)
        # Within a round trip and the clocks' millisecond the offset is noise: two synchronous clocks stay at 0.
        found = median(self._offsets)
        self.offset_ms = 0.0 if abs(found) < 2 else found  # noqa: PLR2004
