"""Which offset of a partition may be committed.

A record is *answered* when everything its outcome must leave behind is acknowledged by Kafka. The commit point is the
first offset that is not answered; it is the only thing ever committed. Since a tracker starts at a committed value (or
the log's start) and passes only answered records, any value that any worker ever committed is a safe place to start,
however late it arrives. Nothing here knows clocks or leases: those decide how often work is done, never whether.
"""

from __future__ import annotations

from enum import Enum, auto


class Arrival(Enum):
    """What a received offset means."""

    NEXT = auto()
    """The one expected: take it."""
    OLD = auto()
    """Below what was received already: ignore it."""
    GAP = auto()
    """Something between was not delivered: seek back to `expected` and read again before believing it."""


class OffsetTracker:
    """One claim on one partition: what was received, what is answered, what may be committed."""

    __slots__ = ("_base", "_believed_to", "_done", "committed", "expected", "gaps")

    def __init__(self, start: int) -> None:
        self._base = start
        self._done: set[int] = set()
        self._believed_to = start
        self.expected = start
        """The next offset to receive."""
        self.committed = start
        """The last commit known to have succeeded, or the start."""
        self.gaps = 0
        """Offsets that were found not to exist, even when read twice."""

    @property
    def commit_point(self) -> int:
        """Everything below is answered."""
        return self._base

    @property
    def unanswered(self) -> int:
        """Records received but not answered, answered ones behind the first unanswered one included."""
        return self.expected - self._base

    def receive(self, offset: int) -> Arrival:
        """Judge a record that was read."""
        if offset == self.expected:
            self.expected = offset + 1
            return Arrival.NEXT
        if offset < self.expected:
            return Arrival.OLD
        if self._believed_to >= offset:
            self._step_over(offset)
            return Arrival.NEXT
        self._believed_to = offset
        return Arrival.GAP

    def _step_over(self, offset: int) -> None:
        """Offsets up to `offset` were missing twice: they do not exist (transaction markers, deleted records)."""
        missing = range(self.expected, offset)
        self.gaps += len(missing)
        self.expected = offset + 1
        for absent in missing:
            self.done(absent)

    def skip(self) -> int:
        """Give up the next record, which nobody can read, and return its offset; it counts as answered."""
        offset, self.expected = self.expected, self.expected + 1
        self.done(offset)
        return offset

    def done(self, offset: int) -> None:
        """Mark a received record as answered; twice is once."""
        if offset == self._base:
            offset += 1
            while offset in self._done:
                self._done.remove(offset)
                offset += 1
            self._base = offset
        elif self._base < offset < self.expected:
            self._done.add(offset)

    def is_done(self, offset: int) -> bool:
        """Whether a record is answered."""
        return offset < self._base or offset in self._done

    def to_commit(self) -> int | None:
        """The value to commit now, None when the last commit still says it all."""
        return self._base if self._base > self.committed else None

    def commit_succeeded(self, offset: int) -> None:
        """Note a successful commit; within a claim commits never go down."""
        self.committed = max(self.committed, offset)

    def read_back(self, offset: int | None) -> None:
        """Note what is committed by now: an earlier owner's commit may have come late and stand below ours."""
        self.committed = -1 if offset is None else offset
