"""A worker's right to work: its lease, renewed in time, and the partitions that go with it.

The holder trusts its lease until `margin` before the earliest moment at which the server may end it, counted from when
a renewal was *sent*. In doubt it launches and takes nothing; results of batches that were launched before may still be
published. Every renewal also says which partitions are wanted of this worker and which it should give back, so one
reconcile covers lost events, lost answers and plain news alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NoReturn, Protocol

from contracts.adapters.assignments import Assignments
from contracts.adapters.leases import Leases
from contracts.clock import Clock
from contracts.errors import LeaseLost, TransportError
from contracts.lease import TrustWindow
from contracts.pool import PartitionKey, Refusal, Renewal
from contracts.settings import LeaseSettings

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25
_CLAIM_RETRY_SECONDS = 0.25
_EVENT_BLOCK_MS = 2000


class Drain(Protocol):
    """What drains one topic, whose partitions come and go."""

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions drained now."""
        ...

    async def take(self, numbers: Iterable[int]) -> None:
        """Begin to drain partitions that were just claimed."""

    async def give(self, numbers: Iterable[int]) -> frozenset[int]:
        """Finish what runs of these partitions and commit it; returns those that may be released."""
        ...


class Tenure:
    """Holds one lease and reconciles its partitions."""

    def __init__(
        self,
        lease_id: str,
        token: int,
        *,
        leases: Leases,
        assignments: Assignments,
        drains: Mapping[str, Drain],
        clock: Clock,
        settings: LeaseSettings,
        renewed: Callable[[], None],
    ) -> None:
        """`renewed` is called whenever trust was renewed: what waited for it may go on."""
        self._lease = lease_id
        self._token = token
        self._leases = leases
        self._assignments = assignments
        self._drains = drains
        self._clock = clock
        self._settings = settings
        self._renewed = renewed
        self._window = TrustWindow(settings.ttl_seconds, settings.margin_seconds)
        self._wake = asyncio.Event()
        self._moving: dict[PartitionKey, asyncio.Task[None]] = {}
        self._is_draining = False
        self._is_given_back = False
        self.is_over = False
        """The server said that the lease has ended."""

    @property
    def is_trusted(self) -> bool:
        """Whether something may be launched or taken now."""
        return not self.is_over and self._window.is_trusted(self._clock.monotonic())

    async def bind(self, bound: Mapping[str, str]) -> None:
        """Say that the worker is warm; from now on it may be given partitions. Raises LeaseLost, TransportError."""
        started = self._clock.monotonic()
        refusal = await self._leases.bind(self._lease, self._token, self._ttl_ms, bound)
        if refusal is not None:
            self._lost(refusal)
        self._window.renewed(started)

    @property
    def _ttl_ms(self) -> int:
        return int(self._settings.ttl_seconds * 1000)

    def _lost(self, refusal: Refusal) -> NoReturn:
        self.is_over = True
        self._window.end()
        msg = f"lease {self._lease} is no longer held: {refusal}"
        raise LeaseLost(msg)

    async def renew_loop(self) -> None:
        """Renew at intervals and whenever something changed. Raises LeaseLost when it is over or has drained."""
        while not self._is_given_back:
            try:
                renewal = await self._renew()
                self._reconcile(renewal)
                self._renewed()
            except TransportError as exc:
                left = self._window.remaining(self._clock.monotonic())
                log.warning("lease not renewed, %.1f s of trust left: %s", left, exc)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if self._is_draining and not self._owns_anything():
                msg = f"lease {self._lease} has drained"
                raise LeaseLost(msg)
            await self._pause(self._settings.renew_seconds)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _renew(self) -> Renewal:
        started = self._clock.monotonic()
        answer = await self._leases.renew(self._lease, self._token, self._ttl_ms)
        if isinstance(answer, Refusal):
            self._lost(answer)
        self._window.renewed(started, answer.expires_in_ms / 1000)
        if answer.state == "draining" and not self._is_draining:
            log.info("lease %s is to drain", self._lease)
            self._is_draining = True
        return answer

    def _reconcile(self, renewal: Renewal) -> None:
        for topic, numbers in _by_topic(renewal.lost).items():
            self._move(topic, numbers, self._give_back)
        for topic, numbers in _by_topic(renewal.wanted).items():
            drain = self._drains.get(topic)
            if drain is not None:
                self._move(topic, [n for n in numbers if n not in drain.partitions], self._claim)
        self._forget_foreign(renewal)

    def _move(self, topic: str, numbers: Iterable[int], how: Callable[[str, list[int]], Awaitable[None]]) -> None:
        """Take or give partitions in a task of its own: Kafka may be slow, and renewals must not wait for it."""
        fresh = [number for number in numbers if (topic, number) not in self._moving]
        if not fresh:
            return
        task = asyncio.get_running_loop().create_task(self._moved(topic, fresh, how), name=f"move {topic} {fresh}")
        for number in fresh:
            self._moving[topic, number] = task

    async def _moved(self, topic: str, numbers: list[int], how: Callable[[str, list[int]], Awaitable[None]]) -> None:
        """Whatever fails here is found again by the next reconcile."""
        try:
            await how(topic, numbers)
        except TransportError as exc:
            log.warning("moving %s of %s again: %s", numbers, topic, exc)
            await asyncio.sleep(_RETRY_SECONDS)
        finally:
            for number in numbers:
                self._moving.pop((topic, number), None)
            self._wake.set()

    async def _claim(self, topic: str, numbers: list[int]) -> None:
        claimed = await self._assignments.claim(self._lease, self._token, topic, numbers)
        if claimed.granted:
            log.info("took %s of %s", list(claimed.granted), topic)
            await self._drains[topic].take(claimed.granted)
        else:
            await asyncio.sleep(_CLAIM_RETRY_SECONDS)  # the owner is still finishing; its release wakes us sooner

    async def _give_back(self, topic: str, numbers: list[int]) -> None:
        """Finish, commit, release."""
        drain = self._drains.get(topic)
        if drain is not None:
            await drain.give(numbers)
        await self._assignments.release(self._lease, self._token, topic, numbers)
        log.info("gave back %s of %s", numbers, topic)

    def _forget_foreign(self, renewal: Renewal) -> None:
        """Partitions drained here that Redis neither wants of us nor counts as ours were evicted: give them up."""
        known = {*renewal.wanted, *renewal.lost}
        for topic, drain in self._drains.items():
            self._move(topic, [number for number in drain.partitions if (topic, number) not in known], self._give_back)

    def _owns_anything(self) -> bool:
        return bool(self._moving) or any(drain.partitions for drain in self._drains.values())

    async def event_loop(self) -> None:
        """Wake the renewal as soon as the pool changes something that concerns us."""
        last_id = "$"
        while True:
            try:
                last_id, events = await self._leases.events(last_id, _EVENT_BLOCK_MS)
            except TransportError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if any(event.lease == self._lease or event.topic in self._drains for event in events):
                self._wake.set()

    async def give_all(self, reason: str = "stopped") -> None:
        """Give back every partition, then the lease with the reason; for a worker that stops in peace."""
        if self._moving:
            await asyncio.wait(set(self._moving.values()))
        for topic, drain in self._drains.items():
            self._move(topic, sorted(drain.partitions), self._give_back)
        while self._moving:
            await asyncio.wait(set(self._moving.values()))
        self._is_given_back = True
        if not self.is_over:
            await self._leases.release(self._lease, self._token, reason)
            self.is_over = True

    async def stop(self) -> None:
        """Cancel what still moves."""
        tasks = set(self._moving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _by_topic(partitions: Iterable[PartitionKey]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for topic, number in partitions:
        found[topic].append(number)
    return found
