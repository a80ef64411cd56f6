"""Draining a topic: claim, seek, poll, track, commit, release. The one way to do it.

The reader is assigned all partitions of the topic once, paused; a claim is a seek and a resume, so taking or giving one
partition never disturbs another. Only *after* a claim is granted are the committed offset and the bounds of the log
read: any value ever committed is a safe place to start. Backpressure is simply not polling; what was fetched stays in
the client's buffer, and the log keeps the rest.
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
from contracts.clock import Clock
from contracts.errors import TransportError
from workers.draining import metrics as draining
from workers.draining.claim import Claim
from workers.draining.offsets import Arrival
from workers.ingest import metrics
from workers.ingest.batcher import Batcher
from workers.ingest.forwarder import Forwarder
from workers.ingest.intake import Intake
from workers.ingest.settings import WorkerGroup
from workers.ingest.suspects import Suspects

log = logging.getLogger(__name__)

CAREFUL_CLAIMS = 3
"""A partition that was begun so often without getting on has something in it that ends workers."""
_POLL_MS = 200
_PROBE_MS = 100
_RETRY_SECONDS = 0.5


class Drain:
    """The partitions of one request topic that this worker owns."""

    def __init__(  # noqa: PLR0913 - the parts that it joins
        self,
        topic: str,
        reader: Reader,
        *,
        intake: Intake,
        batcher: Batcher,
        clock: Clock,
        settings: WorkerGroup,
        may_take: Callable[[], bool],
        suspects: Suspects,
        forwarder: Forwarder,
    ) -> None:
        """`may_take` is asked before every poll: lease trusted. `forwarder` works while partition 0 is ours."""
        self.topic = topic
        self._reader = reader
        self._intake = intake
        self._batcher = batcher
        self._clock = clock
        self._settings = settings
        self._may_take = may_take
        self._forwarder = forwarder
        self._journal = suspects.journal
        self._suspects = suspects
        self._claims: dict[Partition, Claim] = {}
        self._claimed = asyncio.Event()
        self._committing = asyncio.Lock()
        self._partition_count = 0
        self._quiet = False

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions drained now."""
        return frozenset(partition.partition for partition in self._claims)

    # --- taking and giving --------------------------------------------------------------------------------------------

    def assign(self, partition_count: int) -> None:
        """Make the topic's partitions readable; again when it has grown, which interrupts running fetches once."""
        if partition_count == self._partition_count:
            return
        self._partition_count = partition_count
        self._reader.assign([Partition(self.topic, number) for number in range(partition_count)])
        for partition, claim in self._claims.items():
            self._reader.begin(partition, claim.tracker.expected)

    async def take(self, numbers: Iterable[int]) -> None:
        """Begin to drain partitions that were just claimed."""
        wanted = [Partition(self.topic, number) for number in numbers]
        fresh = [partition for partition in wanted if partition not in self._claims]
        if not fresh:
            return
        starts = await self._starts(fresh)
        waits = {p.partition: (start, start < end) for p, (start, end) in starts.items()}
        pasts = await self._journal.claim(self.topic, waits)
        for partition, (start, _) in starts.items():
            past = pasts[partition.partition]
            careful = start + self._settings.poll_records if past.claims >= CAREFUL_CLAIMS else 0
            if careful or past.suspects:
                log.warning("%s/%d: %d suspects, begun %d times", *partition, len(past.suspects), past.claims)
            self._claims[partition] = Claim(
                partition, start, suspects=past.suspects, careful_until=careful, claims=past.claims
            )
            self._reader.begin(partition, start)
        if any(partition.partition == 0 for partition in starts):
            self._forwarder.take()
        self._claimed.set()
        draining.PARTITIONS.set(len(self._claims))

    async def _starts(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """Where to begin: the committed offset if the log still has it, else the log's start; and the log's end."""
        committed = await self._reader.committed(partitions)
        bounds = await self._reader.bounds(partitions)
        starts = {}
        for partition in partitions:
            (first, end), at = bounds[partition], committed[partition]
            if at is not None and at < first:
                draining.LOST_TO_RETENTION.inc(first - at)
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
        self._silence(claims)
        if any(partition.partition == 0 for partition in giving):
            await self._forwarder.give()
        settled = asyncio.gather(*(claim.settle() for claim in claims))
        try:
            async with asyncio.timeout(self._settings.handover_drain_seconds):
                await settled
        except TimeoutError:
            log.warning("%s: handing over with %d requests still running", self.topic, sum(c.open for c in claims))
            self._batcher.drop(lambda delivery: delivery.origin.claim in claims)
        for claim in claims:
            claim.is_over = True
        try:
            async with asyncio.timeout(self._settings.handover_commit_seconds):
                await self.commit(self._settings.handover_commit_seconds, final=True)
        except TimeoutError:
            log.warning("%s: handing over without the last commit; some requests will be repeated", self.topic)
        for claim in claims:
            self._note_progress(claim)  # it was not what ended us
        for partition in giving:
            self._claims.pop(partition, None)
        draining.PARTITIONS.set(len(self._claims))
        return frozenset(partition.partition for partition in giving)

    def _silence(self, claims: set[Claim]) -> None:
        """Take nothing more of these claims, and forget what has not been launched."""
        if not claims:
            return
        self._reader.pause(*(claim.partition for claim in claims))
        for claim in claims:
            claim.giving = True
        self._batcher.drop(lambda delivery: delivery.origin.claim in claims)

    async def quiet(self) -> None:
        """Take nothing new from any partition."""
        self._quiet = True
        self._silence(set(self._claims.values()))
        self._claimed.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def poll_loop(self) -> None:
        """Take records until `quiet`. Never cancel it while a poll is under way: use `quiet` and wait for its end."""
        while not self._quiet:
            if not self._claims:
                self._claimed.clear()
                await self._claimed.wait()
                continue
            if not self._may_take() or not self._batcher.room.is_set():
                await self._wait_for_room()
                continue
            try:
                await self._poll_once()
            except UnreadableRecord as exc:
                log.error("%s: %s", self.topic, exc)  # noqa: TRY400 - a stack of the library's says nothing
                await self._step_over_unreadable()
            except TransportError as exc:
                log.warning("%s: %s", self.topic, exc)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _wait_for_room(self) -> None:
        if not self._may_take():
            await asyncio.sleep(_POLL_MS / 1000)
            return
        try:
            async with asyncio.timeout(1.0):
                await self._batcher.room.wait()
        except TimeoutError:
            return

    async def _poll_once(self) -> None:
        limit = self._settings.max_unanswered
        open_claims = [p for p, claim in self._claims.items() if claim.tracker.unanswered < limit and not claim.giving]
        if not open_claims:
            await asyncio.sleep(_RETRY_SECONDS / 10)
            return
        chosen = () if len(open_claims) == len(self._claims) else open_claims
        try:
            found = await self._reader.poll(*chosen, max_records=self._settings.poll_records, timeout_ms=_POLL_MS)
        except OffsetOutOfRange as exc:
            await self._reposition(exc.partitions)
            return
        self._take_found(found)
        if found:
            await asyncio.sleep(0)  # a poll that finds its buffer full never suspends; others must have their turn

    def _take_found(self, found: Mapping[Partition, Sequence[Record]]) -> None:
        for partition, records in found.items():
            claim = self._claims.get(partition)
            if claim is not None and not claim.giving:
                self._take_records(claim, records)
        if found:
            self._batcher.pump()
            metrics.QUEUE_ROWS.set(self._batcher.queue.rows)

    async def _step_over_unreadable(self) -> None:
        """Find the record that cannot be read and go on behind it, or its partition would stand still for ever.

        A record that cannot be decoded has no id to answer. What the failed poll took of other partitions is read
        again; then each partition is read by itself, a record at a time, and an offset that fails twice is given up,
        as are those behind it in the same batch when the library cannot get past the first.
        """
        claims = [claim for claim in self._claims.values() if not claim.giving]
        for claim in claims:
            self._reader.seek(claim.partition, claim.tracker.expected)
        for claim in claims:
            while not self._quiet and not claim.giving and not await self._is_readable(claim):
                draining.UNREADABLE.inc()
                log.error("%s/%d: gave up offset %d, which cannot be read", *claim.partition, claim.tracker.skip())
                self._reader.seek(claim.partition, claim.tracker.expected)

    async def _is_readable(self, claim: Claim) -> bool:
        """Whether the next record of a partition can be read; it is taken when it can."""
        for _ in range(2):
            try:
                found = await self._reader.poll(claim.partition, max_records=1, timeout_ms=_PROBE_MS)
            except UnreadableRecord:
                if not claim.giving:
                    self._reader.seek(claim.partition, claim.tracker.expected)
                continue
            self._take_found(found)
            return True
        return False

    def _take_records(self, claim: Claim, records: Sequence[Record]) -> None:
        tracker, take, put = claim.tracker, self._intake.take, self._batcher.put
        is_wary = claim.is_wary
        for record in records:
            arrival = tracker.receive(record.offset)
            if arrival is Arrival.NEXT:
                if is_wary and claim.is_suspect(record.offset):
                    self._suspects.put(claim, record)
                    continue
                delivery = take(claim, record)
                if delivery is not None:
                    put(delivery)
            elif arrival is Arrival.GAP:
                log.warning("%s/%d: offset %d after %d", *claim.partition, record.offset, tracker.expected)
                draining.OFFSET_GAPS.inc()
                self._reader.seek(claim.partition, tracker.expected)
                return

    async def _reposition(self, partitions: Iterable[Partition]) -> None:
        """The log's bounds moved past a position (retention, a restored log): begin these claims anew."""
        mine = [partition for partition in partitions if partition in self._claims]
        starts = await self._starts(mine)
        for partition, (start, _) in starts.items():
            log.error("%s/%d: position lost, starting again at %d", *partition, start)
            claim = self._claims[partition]
            if not claim.giving:
                self._claims[partition] = Claim(partition, start)
                self._reader.begin(partition, start)

    # --- committing ---------------------------------------------------------------------------------------------------

    async def commit_loop(self) -> None:
        """Commit what was answered, at intervals."""
        while True:
            await asyncio.sleep(self._settings.commit_interval_ms / 1000)
            await self.commit(5.0)

    async def commit(self, seconds: float, *, final: bool = False) -> bool:
        """Commit every claim's answered prefix; False when it is unknown whether that arrived.

        One commit at a time: an earlier one that lands late would lower the offset, and somebody would repeat work.
        """
        async with self._committing:
            offsets = {p: at for p, claim in self._claims.items() if (at := claim.tracker.to_commit()) is not None}
            if not offsets:
                return True
            try:
                await self._reader.commit(offsets, timeout_seconds=seconds)
            except GroupHasMembers:
                draining.COMMITS.labels("group_has_members").inc()
                log.error("%s: somebody joined the commit group; work goes on uncommitted", self.topic)  # noqa: TRY400
                return False
            except TransportError as exc:
                draining.COMMITS.labels("unknown").inc()
                log.warning("%s: commit not confirmed%s: %s", self.topic, " at handover" if final else "", exc)
                return False
            draining.COMMITS.labels("ok").inc()
            for partition, offset in offsets.items():
                claim = self._claims.get(partition)
                if claim is not None:
                    claim.tracker.commit_succeeded(offset)
                    self._note_progress(claim)
            return True

    def _note_progress(self, claim: Claim) -> None:
        if claim.claims:
            claim.claims = 0
            self._journal.progressed(self.topic, claim.partition.partition)
