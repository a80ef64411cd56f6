"""Fetch: read at once, or wait for the next append.

A fetch that finds less than it wants is parked on its partitions. An append gives notice to those parked on its own
partition and to nobody else; they look again as soon as the whole request that appended is done, so that what a
producer sent at once is fetched at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from kio.schema.errors import ErrorCode

from deploy.embedded.log_faults import Faults
from deploy.embedded.log_partition import Partition
from deploy.embedded.log_store import Store
from deploy.embedded.log_wire import Api, Fetched, LogError, Request, write_fetched

log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 16 << 20  # whatever a client asks for: what is under way to slow readers has to fit into memory


class Noticed:
    """Parked fetches that an append has given notice to."""

    def __init__(self) -> None:
        self._fetches: list[Fetch] = []
        self._is_looking = False

    def add(self, fetch: Fetch) -> None:
        """Have a fetch look again."""
        self._fetches.append(fetch)

    def look_again(self) -> None:
        """Let all look. An answer may set off the next request of its connection and so give more of them notice."""
        if self._is_looking:
            return
        self._is_looking = True
        while self._fetches:
            try:
                self._fetches.pop().look_again()
            except Exception:  # not the fault of who appended, nor of the others; the fetch ends with its time
                log.exception("a waiting fetch could not be answered")
        self._is_looking = False


class Fetch:
    """One request and, until it is answered, its place among those who wait for its partitions."""

    def __init__(
        self, request: Request, store: Store, faults: Faults, noticed: Noticed, answer: Callable[[bytes], None]
    ) -> None:
        self._request = request
        self._store = store
        self._faults = faults
        self._noticed = noticed
        self._answer = answer
        self._parked: list[Partition] = []
        self._timer: asyncio.TimerHandle | None = None
        self._has_notice = False

    def begin(self) -> None:
        """Answer if there is enough, or if there is anything to complain about; otherwise park."""
        body = self._request.body
        if getattr(body, "session_id", 0):
            self._answer(write_fetched(self._request, (), ErrorCode.fetch_session_id_not_found))
            return
        seconds = body.max_wait.total_seconds()
        if self._try(is_last=seconds <= 0):
            return
        self._timer = asyncio.get_running_loop().call_later(seconds, partial(self._try, is_last=True))
        for topic in body.topics:
            for wish in topic.partitions:
                partition = self._store.partition(topic.topic, wish.partition)
                partition.waiters.add(self._notice)
                self._parked.append(partition)

    def cancel(self) -> None:
        """Forget the request."""
        for partition in self._parked:
            partition.waiters.discard(self._notice)
        self._parked.clear()
        if self._timer is not None:
            self._timer.cancel()

    def look_again(self) -> None:
        """Answer if there is enough by now."""
        self._has_notice = False
        if self._parked:  # neither cancelled nor answered meanwhile
            self._try(is_last=False)

    def _notice(self) -> None:
        if not self._has_notice:
            self._has_notice = True
            self._noticed.add(self)

    def _try(self, *, is_last: bool) -> bool:
        self._faults.begin()
        room = min(self._request.body.max_bytes, MAX_RESPONSE_BYTES)
        size, failed = 0, False
        topics: list[tuple[str, list[Fetched]]] = []
        for topic in self._request.body.topics:
            parts = []
            for wish in topic.partitions:
                limit = min(wish.partition_max_bytes, room - size)
                part = self._read(topic.topic, wish.partition, wish.fetch_offset, limit, is_first=not size)
                size += len(part.records)
                failed = failed or part.error != 0
                parts.append(part)
            topics.append((topic.topic, parts))
        if size < self._request.body.min_bytes and not failed and not is_last:
            return False
        self.cancel()
        self._answer(write_fetched(self._request, topics))
        return True

    def _read(self, topic: str, index: int, offset: int, limit: int, *, is_first: bool) -> Fetched:
        try:
            self._faults.check(Api.FETCH, topic)
            partition = self._store.partition(topic, index)
            records = partition.read(offset, limit, whole_batch=is_first)
        except LogError as error:
            return Fetched(index, error.code)
        except OSError as error:
            log.warning("fetch from %s/%s failed: %s", topic, index, error)
            return Fetched(index, ErrorCode.kafka_storage_error)
        return Fetched(index, 0, partition.end_offset, partition.start_offset, records)
