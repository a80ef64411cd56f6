"""Draining a topic: claim, seek, poll, track, commit, release. The one way to do it.

The reader is assigned all partitions of the topic once, paused; a claim is a seek and a resume, so taking or giving one
partition never disturbs another. Only *after* a claim is granted are the committed offset and the bounds of the log
read: any value ever committed is a safe place to start. Backpressure is simply not polling; what was fetched stays in
the client's buffer, and the log keeps the rest.

What is done with the records is a subclass's business, from `_opened` to `_closed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from contracts.adapters.kafka import (
    GroupHasMembers,
    OffsetOutOfRange,
    Partition,
    Reader,
    Record,
    UnreadableRecord,
)
from contracts.errors import TransportError
from workers.draining import metrics
from workers.draining.claim import Claim
from workers.draining.offsets import OffsetTracker
from workers.draining.settings import DrainGroup
from workers.draining.stall import StallWatch

log = logging.getLogger(__name__)

Bounds = tuple[int, int]
"""Where to begin, and the log's end as it was found."""
POLL_MS = 200
READ_BACK_SECONDS = 60.0
"""Between looks at what is committed. Commits of earlier owners land whenever they like, and old offsets expire."""
_PROBE_MS = 100
_RETRY_SECONDS = 0.5


class TopicDrain:
    """The partitions of one topic that this worker owns."""

    def __init__(self, topic: str, reader: Reader, *, settings: DrainGroup, may_take: Callable[[], bool]) -> None:
        """`may_take` is asked before every poll: lease trusted."""
        self.topic = topic
        self._reader = reader
        self._settings = settings
        self._may_take = may_take
        self._claims: dict[Partition, Claim] = {}
        self._claimed = asyncio.Event()
        self._committing = asyncio.Lock()
        self._partition_count = 0
        self._quiet = False
        self._stall = StallWatch(settings.stuck_seconds)

    # --- what subclasses do -------------------------------------------------------------------------------------------

    async def _opened(self, starts: Mapping[Partition, Bounds]) -> list[Claim]:
        """Partitions were claimed: say with what they are drained."""
        raise NotImplementedError

    async def _take_records(self, claim: Claim, records: Sequence[Record]) -> None:
        """Records were read: judge each by the claim's tracker, and take what is next."""
        raise NotImplementedError

    async def _took(self) -> None:
        """All records of a poll were taken."""

    def _stepped_over(self, claim: Claim) -> None:
        """The tracker passed an offset that cannot be read."""

    async def _room(self) -> bool:
        """Whether more records can be taken; may wait a while for it."""
        return True

    def _most(self) -> int:
        """How many records are to be taken in one go."""
        return self._settings.poll_records

    def _is_full(self, claim: Claim) -> bool:
        """Whether a claim waits until some of its records are answered."""
        return claim.tracker.unanswered >= self._settings.max_unanswered

    def _silence(self, claims: Iterable[Claim]) -> None:
        """Nothing more is taken of these claims; forget what was not begun."""
        raise NotImplementedError

    async def _settle(self, claims: Iterable[Claim]) -> None:
        """Return when what was begun is finished; given up after a while."""
        await asyncio.gather(*(claim.settle() for claim in claims))

    def _abandon(self, claims: Iterable[Claim]) -> None:
        """What was begun did not finish in time."""

    def _progressed(self, claim: Claim) -> None:
        """A commit of this claim arrived, or it ended in peace."""

    async def _closing(self, partitions: Sequence[Partition]) -> None:
        """These partitions are being given away."""

    def _closed(self, partition: Partition) -> None:
        """A partition was given away."""

    # --- taking and giving --------------------------------------------------------------------------------------------

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions drained now."""
        return frozenset(partition.partition for partition in self._claims)

    def assign(self, partition_count: int) -> None:
        """Make the topic's partitions readable; again when it has grown, which interrupts running fetches once."""
        if partition_count != self._partition_count:
            self._partition_count = partition_count
            self._assign()

    def _assign(self) -> None:
        self._reader.assign([Partition(self.topic, number) for number in range(self._partition_count)])
        for partition, claim in self._claims.items():
            self._reader.begin(partition, claim.tracker.expected)

    async def take(self, numbers: Iterable[int]) -> None:
        """Begin to drain partitions that were just claimed."""
        wanted = [Partition(self.topic, number) for number in numbers]
        fresh = [partition for partition in wanted if partition not in self._claims]
        if fresh:
            await self._begin(await self._starts(fresh))

    async def _begin(self, starts: Mapping[Partition, Bounds], old: Mapping[Partition, Claim] | None = None) -> None:
        """Open claims; those that take the place of `old` ones only where these were not given away meanwhile."""
        left = []
        for claim in await self._opened(starts):
            if old is not None and not self._is_drained(old[claim.partition]):
                left.append(claim.partition)
                continue
            self._claims[claim.partition] = claim
            self._reader.begin(claim.partition, claim.tracker.expected)
        if left:
            await self._closing(left)
        self._claimed.set()
        metrics.PARTITIONS.labels(self.topic).set(len(self._claims))

    async def _starts(self, partitions: Sequence[Partition]) -> dict[Partition, Bounds]:
        """Where to begin: the committed offset if the log still has it, else the log's start; and the log's end."""
        committed = await self._reader.committed(partitions)
        bounds = await self._reader.bounds(partitions)
        starts = {}
        for partition in partitions:
            (first, end), at = bounds[partition], committed[partition]
            if at is not None and at < first:
                metrics.LOST_TO_RETENTION.inc(first - at)
                log.error("%s/%d: retention removed %d unanswered records", *partition, first - at)
            elif at is not None and at > end:
                log.error(
                    "%s/%d: committed offset %d is beyond the end %d; reading from the start", *partition, at, end
                )
            starts[partition] = (at if at is not None and first <= at <= end else first), end
        return starts

    async def give(self, numbers: Iterable[int]) -> frozenset[int]:
        """Stop draining partitions: finish what runs, commit; returns those that may be released."""
        giving = [p for number in numbers if (p := Partition(self.topic, number)) in self._claims]
        if not giving:
            return frozenset()
        claims = {self._claims[partition] for partition in giving}
        self._hush(claims)
        await self._closing(giving)
        try:
            async with asyncio.timeout(self._settings.handover_drain_seconds):
                await self._settle(claims)
        except TimeoutError:
            log.warning("%s: handing over with %d requests still running", self.topic, sum(c.open for c in claims))
            self._abandon(claims)
        for claim in claims:
            claim.is_over = True
        try:
            async with asyncio.timeout(self._settings.handover_commit_seconds):
                await self.commit(self._settings.handover_commit_seconds, final=True)
        except TimeoutError:
            log.warning("%s: handing over without the last commit; some requests will be repeated", self.topic)
        for claim in claims:
            self._progressed(claim)  # it was not what ended us
        for partition in giving:
            self._claims.pop(partition, None)
            self._closed(partition)
        metrics.PARTITIONS.labels(self.topic).set(len(self._claims))
        return frozenset(partition.partition for partition in giving)

    def _hush(self, claims: set[Claim]) -> None:
        if not claims:
            return
        self._reader.pause(*(claim.partition for claim in claims))
        for claim in claims:
            claim.giving = True
        self._silence(claims)

    async def quiet(self) -> None:
        """Take nothing new from any partition."""
        self._quiet = True
        self._hush(set(self._claims.values()))
        self._claimed.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def poll_loop(self) -> None:
        """Take records until `quiet`. Never cancel it while a poll is under way: use `quiet` and wait for its end."""
        while not self._quiet:
            if not self._claims:
                self._claimed.clear()
                await self._claimed.wait()
                continue
            if not self._may_take():
                await asyncio.sleep(POLL_MS / 1000)
                continue
            if not await self._room():
                continue
            try:
                try:
                    await self._poll_once()
                except UnreadableRecord as exc:
                    log.error("%s: %s", self.topic, exc)  # noqa: TRY400 - a stack of the library's says nothing
                    await self._step_over_unreadable()
            except TransportError as exc:
                log.warning("%s: %s", self.topic, exc)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _poll_once(self) -> None:
        open_claims = [p for p, claim in self._claims.items() if not claim.giving and not self._is_full(claim)]
        if not open_claims:
            await asyncio.sleep(_RETRY_SECONDS / 10)
            return
        chosen = () if len(open_claims) == len(self._claims) else open_claims
        try:
            found = await self._reader.poll(*chosen, max_records=self._most(), timeout_ms=POLL_MS)
        except OffsetOutOfRange as exc:
            await self._reposition(exc.partitions)
            return
        await self._take_found(found)
        await self._watch(open_claims)
        if found:
            await asyncio.sleep(0)  # a poll that finds its buffer full never suspends; others must have their turn

    async def _watch(self, asked: Iterable[Partition]) -> None:
        """Make a new reader when the old one stands still although the log has more."""
        positions = {p: self._claims[p].tracker.expected for p in asked if p in self._claims}
        still = self._stall.look(asyncio.get_running_loop().time(), positions)
        if not still:
            return
        bounds = await self._reader.bounds(still)
        stuck = [p for p in still if p in self._claims and positions[p] < bounds[p][1]]
        if stuck:
            metrics.STUCK.inc()
            log.error("%s: stuck in %s; reading anew", self.topic, [partition.partition for partition in stuck])
            await self._reader.reopen(self._assign)

    async def _take_found(self, found: Mapping[Partition, Sequence[Record]]) -> None:
        for partition, records in found.items():
            claim = self._claims.get(partition)
            if claim is not None and not claim.giving:
                await self._take_records(claim, records)
        if found:
            await self._took()

    def _gap(self, claim: Claim, record: Record) -> None:
        """Something was not delivered: read again before believing that it does not exist."""
        log.warning("%s/%d: offset %d after %d", *claim.partition, record.offset, claim.tracker.expected)
        metrics.OFFSET_GAPS.inc()
        self._reader.seek(claim.partition, claim.tracker.expected)

    async def _step_over_unreadable(self) -> None:
        """Find the record that cannot be read and go on behind it, or its partition would stand still for ever.

        A record that cannot be decoded has no id to answer. What the failed poll took of other partitions is read
        again; then each partition is read by itself, a record at a time. An offset that fails twice is given up, and
        what is packed into one batch with it is read past the library, which would never get behind the first.
        """
        claims = [claim for claim in self._claims.values() if not claim.giving]
        for claim in claims:
            self._reader.seek(claim.partition, claim.tracker.expected)
        for claim in claims:
            while not self._quiet and not claim.giving and not await self._is_readable(claim):
                found = await self._reader.salvage(claim.partition, claim.tracker.expected)
                end = claim.tracker.expected + 1 if found is None else found.end
                for record in found.records if found is not None else ():
                    self._give_up(claim, record.offset)
                    await self._take_found({claim.partition: [record]})
                self._give_up(claim, end)
                self._reader.seek(claim.partition, claim.tracker.expected)

    def _give_up(self, claim: Claim, end: int) -> None:
        """Nobody can read what was not taken of a claim before `end`."""
        while claim.tracker.expected < end and not claim.giving:
            metrics.UNREADABLE.inc()
            log.error("%s/%d: gave up offset %d, which cannot be read", *claim.partition, claim.tracker.skip())
            self._stepped_over(claim)

    async def _is_readable(self, claim: Claim) -> bool:
        """Whether the next record of a partition can be read; it is taken when it can."""
        for _ in range(2):
            try:
                found = await self._reader.poll(claim.partition, max_records=1, timeout_ms=_PROBE_MS)
            except UnreadableRecord:
                if not claim.giving:
                    self._reader.seek(claim.partition, claim.tracker.expected)
                continue
            await self._take_found(found)
            return True
        return False

    async def _reposition(self, partitions: Iterable[Partition]) -> None:
        """The log's bounds moved past a position (retention, a restored log): begin these claims anew."""
        mine = {p: self._claims[p] for p in partitions if p in self._claims and not self._claims[p].giving}
        found = await self._starts(list(mine))
        starts = {p: bounds for p, bounds in found.items() if self._is_drained(mine[p])}
        for partition, (start, _) in starts.items():
            log.error("%s/%d: position lost, starting again at %d", *partition, start)
        if starts:
            await self._begin(starts, mine)

    def _is_drained(self, claim: Claim) -> bool:
        return self._claims.get(claim.partition) is claim and not claim.giving

    # --- committing ---------------------------------------------------------------------------------------------------

    async def commit_loop(self) -> None:
        """Commit what was answered, at intervals; repair what somebody else's late commit, or time, has undone."""
        reads = asyncio.get_running_loop().time() + READ_BACK_SECONDS
        while True:
            if not self._claims:
                await self._claimed.wait()
            await asyncio.sleep(self._settings.commit_interval_ms / 1000)
            if asyncio.get_running_loop().time() >= reads:
                reads = asyncio.get_running_loop().time() + READ_BACK_SECONDS
                await self._read_back()
            await self.commit(5.0)

    async def _read_back(self) -> None:
        claims = dict(self._claims)
        if not claims:
            return
        async with self._committing:
            try:
                committed = await self._reader.committed(list(claims))
            except TransportError as exc:
                log.warning("%s: the committed offsets are unknown: %s", self.topic, exc)
                return
        for partition, claim in claims.items():
            claim.tracker.read_back(committed[partition])

    async def commit(self, seconds: float, *, final: bool = False) -> bool:
        """Commit every claim's answered prefix; False when it is unknown whether that arrived.

        One commit at a time: an earlier one that lands late would lower the offset, and somebody would repeat work.
        """
        async with self._committing:
            trackers = {partition: claim.tracker for partition, claim in self._claims.items()}
            offsets = {p: at for p, tracker in trackers.items() if (at := tracker.to_commit()) is not None}
            if not offsets:
                return True
            try:
                await self._reader.commit(offsets, timeout_seconds=seconds)
            except GroupHasMembers:
                metrics.COMMITS.labels("group_has_members").inc()
                log.error("%s: somebody joined the commit group; work goes on uncommitted", self.topic)  # noqa: TRY400
                return False
            except TransportError as exc:
                metrics.COMMITS.labels("unknown").inc()
                log.warning("%s: commit not confirmed%s: %s", self.topic, " at handover" if final else "", exc)
                return False
            metrics.COMMITS.labels("ok").inc()
            self._committed(offsets, trackers)
            return True

    def _committed(self, offsets: Mapping[Partition, int], trackers: Mapping[Partition, OffsetTracker]) -> None:
        for partition, offset in offsets.items():
            claim = self._claims.get(partition)
            if claim is not None and claim.tracker is trackers[partition]:
                claim.tracker.commit_succeeded(offset)
                self._progressed(claim)
