"""Fetch: read at once, or wait for the next append.

A fetch that finds less than it wants is parked on its partitions. An append wakes those parked on its own partition and
nobody else; the answer is put together in the loop's next turn, so that what arrived in one turn leaves in one answer.
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


class Fetch:
    """One request and, until it is answered, its place among those who wait for its partitions."""

    def __init__(self, request: Request, store: Store, faults: Faults, answer: Callable[[bytes], None]) -> None:
        self._request = request
        self._store = store
        self._faults = faults
        self._answer = answer
        self._parked: list[Partition] = []
        self._timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None

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
        for handle in (self._timer, self._turn):
            if handle is not None:
                handle.cancel()

    def _notice(self) -> None:
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._turn = None
        self._try(is_last=False)

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
