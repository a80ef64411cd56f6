"""Which partition a request goes to. Pure.

Records for one partition share a batch on the wire, in the log and on their way to a worker, so consecutive requests
stay with one partition for a short run. The run must be short enough that what one client has in flight still covers
all partitions twice over, or workers would idle while others queue; and it ends with its time, so that a trickle of
requests visits every partition in turn. Clients begin at different partitions.

A key pins a request to `crc32(key) mod partitions`, as librdkafka's `consistent` partitioner does.
"""

from __future__ import annotations

import zlib

RUN_SECONDS = 0.002


class Partitioner:
    """Spreads the requests of one client over the partitions of one topic."""

    __slots__ = ("_current", "_left", "_longest", "_until", "partitions")

    def __init__(self, partitions: int, *, first: int, longest_run: int) -> None:
        self.partitions = partitions
        self._longest = longest_run
        self._current = first % partitions
        self._left = 0
        self._until = 0.0

    def next(self, now: float, in_flight: int) -> int:
        """The partition of the next request without a key."""
        if self._left <= 0 or now >= self._until:
            self._current = (self._current + 1) % self.partitions
            self._left = max(1, min(self._longest, in_flight // (2 * self.partitions)))
            self._until = now + RUN_SECONDS
        self._left -= 1
        return self._current

    def grow(self, partitions: int) -> None:
        """The topic has more partitions now; keyed requests move."""
        self.partitions = max(self.partitions, partitions)

    def of_key(self, key: bytes) -> int:
        """The partition of every request with this key."""
        return zlib.crc32(key) % self.partitions
