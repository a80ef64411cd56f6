"""Requests with the same key (their sequence, or else their record's key), one at a time and in the order of the log.

The first request of a key goes on; those behind it wait here until it has its outcome, whatever that is. So no request
of a key overtakes another, and none of them run at the same time, retries and bisections included. Records without a
key are in no order. The log keeps a key on one partition and a partition has one owner, so this holds across workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from workers.ingest.delivery import Delivery


class KeyOrder:
    """Lets through one delivery per record key."""

    def __init__(self) -> None:
        self._behind: dict[bytes, deque[Delivery]] = {}
        self.rows = 0
        """Rows that wait behind others of their key."""

    def admit(self, delivery: Delivery) -> bool:
        """Whether a delivery may go on now; if not it is kept until those before it are settled."""
        key = delivery.order_key
        if key is None:
            return True
        behind = self._behind.get(key)
        if behind is None:
            self._behind[key] = deque()
            return True
        behind.append(delivery)
        self.rows += delivery.rows
        return False

    def settle(self, delivery: Delivery) -> Delivery | None:
        """A delivery that went on has its outcome; returns the one that goes on next."""
        key = delivery.order_key
        if key is None or key not in self._behind:
            return None
        behind = self._behind[key]
        if not behind:
            del self._behind[key]
            return None
        following = behind.popleft()
        self.rows -= following.rows
        return following

    def remove(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out every waiting delivery for which `unwanted` is true."""
        removed = []
        for key, behind in self._behind.items():
            removed += [delivery for delivery in behind if unwanted(delivery)]
            self._behind[key] = deque(delivery for delivery in behind if not unwanted(delivery))
        self.rows -= sum(delivery.rows for delivery in removed)
        return removed
