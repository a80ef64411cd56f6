"""The reply inbox: one leased partition of the service's reply topic, read without a group, so that nothing moves it.

The partition is assigned and positioned at its end *before* the first request goes out, or a quick response could lie
behind the position. The lease only keeps two clients from reading each other's mail, which costs time and harms nobody:
when it is lost, new requests name another partition and the old one is read until its last request has ended.

Responses reach their callers in the turn of the loop in which they arrive; the task that reads only sees to what goes
wrong. It is never cancelled, because what it took would be lost; it looks at a flag between two short waits. Positions
are counted here, so a reader that fails or hangs is replaced without losing or repeating a response, for as long as it
takes: how long anyone waits is decided by the ttl alone.

Anybody may write into the log, and a record that the client library cannot decode fails a whole poll without saying
where it stands. From then on records are taken one at a time, up to the end that the log had, and the one that fails
twice is passed over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from contracts import topics
from contracts.adapters.inboxes import Inboxes, InboxLease
from contracts.adapters.kafka import Admin, OffsetOutOfRange, Partition, Reader, Record, UnreadableRecord
from contracts.clock import Clock
from contracts.codec import decode_response
from contracts.errors import InvalidRequest, Overloaded, TransportError
from contracts.messages import ReplyAddress
from contracts.settings import KafkaSettings
from producer.large_tensors import LargeTensors
from producer.pending import Pending
from producer.settings import InboxSettings

log = logging.getLogger(__name__)

_POLL_MS = 50  # how long a stop waits at most; a response ends the poll at once
_BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # before a failed reader is replaced, the last one from then on
_SILENCE_SECONDS = 10.0  # with requests under way and responses in the log, a reader this silent hangs


class Inbox:
    """Reads responses and hands them to `pending`; `moved` is called when the reply address has changed."""

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: InboxSettings,
        leases: Inboxes,
        pending: Pending,
        *,
        clock: Clock,
        moved: Callable[[], None],
        large: LargeTensors,
    ) -> None:
        self._kafka = kafka
        self._settings = settings
        self._leases = leases
        self._pending = pending
        self._clock = clock
        self._moved = moved
        self._large = large
        self._topic = topics.replies(kafka.prefix, settings.name)
        self._ttl_ms = int(settings.ttl_seconds * 1000)
        self._count = 0
        self._lease: InboxLease | None = None
        self._tokens: set[str] = set()
        self._owed: dict[Partition, list[str]] = {}
        """Ids whose responses go to a partition that is not ours any more."""
        self._reader = Reader(kafka)
        self._positions: dict[Partition, int] = {}
        self._suspect: dict[Partition, int] = {}
        """Where something unreadable lies somewhere before an offset."""
        self._failed_at: dict[Partition, int] = {}
        """Where a single record could not be read once."""
        self._desired: dict[Partition, int] | None = None
        self._settled = asyncio.Event()
        self._is_stopping = False
        self._heard_at = clock.monotonic()

    @property
    def address(self) -> ReplyAddress:
        """Where new requests have their responses sent."""
        if self._lease is None:
            msg = "the inbox is not open"
            raise TransportError(msg)
        return ReplyAddress(self._topic, self._lease.partition, self._lease.token)

    async def open(self) -> None:
        """Lease a partition and stand at its end. Raises Overloaded when all are taken, TransportError."""
        self._count = await self._find_topic()
        self._lease = lease = await self._acquire()
        try:
            await self._reader.open()
            self._reader.assign([Partition(self._topic, lease.partition)])  # asks for the topic's leaders, too
            self._positions = await self._at_end(lease)
            self._assign()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Give the partition back and disconnect; the poll loop must have ended. Idempotent."""
        lease, self._lease = self._lease, None
        await self._reader.close()
        if lease is not None:
            try:
                await self._leases.release(lease)
            except TransportError as exc:
                log.debug("the inbox lease will end by its ttl: %s", exc)

    def stop(self) -> None:
        """Have the poll loop end after its current poll."""
        self._is_stopping = True

    async def _find_topic(self) -> int:
        admin = Admin(self._kafka)
        await admin.open()
        try:
            existing = (await admin.partition_counts()).get(self._topic)
            if existing is not None:
                return existing
            await self._create_topic(admin)
            return self._settings.partitions
        finally:
            await admin.close()

    async def _create_topic(self, admin: Admin) -> None:
        configs = {"retention.ms": str(self._settings.retention_ms)}
        try:
            await admin.ensure_topic(self._topic, self._settings.partitions, configs)
        except TransportError as exc:
            msg = (
                f"the reply topic {self._topic} does not exist and could not be created ({exc}): have it created with "
                f"{self._settings.partitions} partitions, or name an inbox that exists"
            )
            raise TransportError(msg) from exc

    # --- reading ------------------------------------------------------------------------------------------------------

    async def poll_loop(self) -> None:
        """Deliver responses until stopped."""
        failures = 0
        while not self._is_stopping:
            try:
                if failures:
                    await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1])
                    await self._replace_reader()
                await self._turn()
                failures = 0
            except TransportError as exc:
                failures += 1
                log.warning("the reply reader failed and is replaced: %s", exc)

    async def _turn(self) -> None:
        if self._desired is not None:
            self._positions = {partition: self._positions.get(partition, at) for partition, at in self._desired.items()}
            self._desired = None
            self._clear_suspects()
            self._assign()
            self._settled.set()
        try:
            await (self._take_singly() if self._suspect else self._follow())
        except OffsetOutOfRange as exc:
            log.warning("responses were deleted unread: %s", exc)
            await self._skip_deleted()
            return
        now = self._clock.monotonic()
        if now - self._heard_at > _SILENCE_SECONDS:
            self._heard_at = now
            await self._check_silence()

    async def _follow(self) -> None:
        """Deliver responses as they arrive, for a moment."""
        try:
            await self._reader.follow(self._accept, timeout_ms=_POLL_MS)
        except UnreadableRecord as exc:
            await self._look_for_unreadable(exc)

    async def _take(self, *partitions: Partition) -> None:
        """Deliver what was fetched of some partitions."""
        try:
            found = await self._reader.poll(*partitions, timeout_ms=0)
        except UnreadableRecord as exc:
            await self._look_for_unreadable(exc)
        else:
            self._accept(found)

    async def _look_for_unreadable(self, exc: UnreadableRecord) -> None:
        """It lies somewhere between where we are and the log's present end."""
        log.warning("something in the inbox cannot be read and is looked for: %s", exc)
        self._seek_back()
        bounds = await self._reader.bounds(list(self._positions))
        self._suspect = {partition: end for partition, (_, end) in bounds.items()}
        self._clear_suspects()

    async def _take_singly(self) -> None:
        """Deliver one record of each suspect partition, and whatever there is of the others."""
        for partition in list(self._suspect):
            try:
                found = await self._reader.poll(partition, max_records=1, timeout_ms=_POLL_MS)
            except UnreadableRecord as exc:
                self._heard_at = self._clock.monotonic()
                self._pass_over(partition, exc)
                self._seek_back()
            else:
                self._accept(found)
        self._clear_suspects()
        if others := [partition for partition in self._positions if partition not in self._suspect]:
            await self._take(*others)

    def _pass_over(self, partition: Partition, exc: UnreadableRecord) -> None:
        """Give a record that could not be read one more chance, then none: only its way here may have harmed it."""
        position = self._positions[partition]
        if self._failed_at.pop(partition, None) != position:
            self._failed_at[partition] = position
            return
        log.warning("offset %d of %s/%d was passed over: %s", position, partition.topic, partition.partition, exc)
        self._pending.counts.malformed += 1
        self._positions[partition] = position + 1

    def _clear_suspects(self) -> None:
        """Trust a partition again once everything is read that can have failed."""
        for partition, end in list(self._suspect.items()):
            if self._positions.get(partition, end) >= end:
                del self._suspect[partition]
                self._failed_at.pop(partition, None)

    def _seek_back(self) -> None:
        """A poll that failed may have moved any position, and dropped what it took."""
        for partition, offset in self._positions.items():
            self._reader.seek(partition, offset)

    def _accept(self, found: Mapping[Partition, Sequence[Record]]) -> None:
        """Hand responses to who waits for them."""
        now = self._clock.monotonic()
        resolve, tokens = self._pending.resolve, self._tokens
        for partition, records in found.items():
            self._heard_at = now
            self._positions[partition] = records[-1].offset + 1
            for record in records:
                try:
                    response, token = decode_response(record.headers, record.value)
                except InvalidRequest as exc:
                    self._pending.counts.malformed += 1
                    log.debug("a record in the inbox was dropped: %s", exc)
                    continue
                for tensor in response.outputs:
                    if tensor.ref is not None:
                        self._large.take(response, is_own=token in tokens)
                        break
                else:
                    resolve(response, is_own=token in tokens, now=now)

    def _assign(self) -> None:
        """Read what `_positions` says, from there on; a second assignment forgets whatever the reader itself knew."""
        self._reader.assign(list(self._positions))
        for partition, offset in self._positions.items():
            self._reader.begin(partition, offset)

    async def _skip_deleted(self) -> None:
        bounds = await self._reader.bounds(list(self._positions))
        for partition, (first, end) in bounds.items():
            self._positions[partition] = min(max(self._positions[partition], first), end)
        self._assign()

    async def _check_silence(self) -> None:
        if not len(self._pending):
            return
        try:
            bounds = await self._reader.bounds(list(self._positions))
        except TransportError:
            return  # no broker answers: that is why it is silent
        if any(bounds[partition][1] > offset for partition, offset in self._positions.items()):
            msg = "it is silent although there are responses"
            raise TransportError(msg)

    async def _replace_reader(self) -> None:
        await self._reader.close()
        self._reader = Reader(self._kafka)
        await self._reader.open()
        self._assign()

    # --- the lease ----------------------------------------------------------------------------------------------------

    async def renew_loop(self) -> None:
        """Keep the lease, or move, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.ttl_seconds / 3)
            try:
                await self._renew()
            except (TransportError, Overloaded) as exc:
                # The partition is still read and its token still known: nothing is lost by going on.
                log.warning("the inbox lease could not be renewed: %s", exc)

    async def _acquire(self) -> InboxLease:
        lease = await self._leases.acquire(self._settings.name, self._count, self._ttl_ms)
        if lease is None:
            msg = (
                f"all {self._count} partitions of inbox {self._settings.name!r} are taken by other clients: "
                "close some, use another inbox name, or give its topic more partitions"
            )
            raise Overloaded(msg)
        self._tokens.add(lease.token)
        return lease

    async def _at_end(self, lease: InboxLease) -> dict[Partition, int]:
        partition = Partition(self._topic, lease.partition)
        bounds = await self._reader.bounds([partition])
        return {partition: bounds[partition][1]}

    async def _renew(self) -> None:
        lease = self._lease
        if lease is None:
            return
        if await self._leases.renew(lease, self._ttl_ms):
            self._forget_old(Partition(self._topic, lease.partition))
            return
        self._pending.counts.inbox_moves += 1
        log.warning("partition %d of inbox %s was taken by another client", lease.partition, lease.inbox)
        successor = await self._acquire()
        self._settled.clear()
        self._desired = {**self._positions, **await self._at_end(successor)}
        await self._settled.wait()
        self._owed[Partition(self._topic, lease.partition)] = [waiter.id for waiter in self._pending.waiters()]
        self._lease = successor
        self._moved()

    def _forget_old(self, current: Partition) -> None:
        """Stop reading partitions of earlier leases where no response is expected any more."""
        over = [old for old, ids in self._owed.items() if not any(name in self._pending for name in ids)]
        for old in over:
            del self._owed[old]
        if any(old != current for old in over):
            self._desired = {partition: at for partition, at in self._positions.items() if partition not in over}
            self._desired.setdefault(current, self._positions[current])
