"""A record that ends its worker while it is decoded: nobody has launched it, and yet it is found."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

from contracts.adapters.journal import Journal
from contracts.adapters.kafka import Partition, Record
from contracts.clock import SystemClock
from tests.integration.redis.kit import Pool
from workers.draining.claim import Claim
from workers.ingest.delivery import Delivery
from workers.ingest.drain import CAREFUL_CLAIMS
from workers.ingest.intake import Moment
from workers.ingest.suspects import Suspects

TOPIC = "headrace.requests.m.1"
KILLERS = {3, 4}
END = 8


class Death(BaseException):
    """What a crash of the process is here."""


class Life:
    """One worker from its claim to its death, or to the end of the log."""

    def __init__(self, pool: Pool, number: int, answered: set[int], buried: dict[int, int]) -> None:
        self.journal = Journal(pool.redis, "default", f"gone-{number}", SystemClock())
        self.suspects = Suspects(self.journal, lambda: True)
        self.answered, self.buried = answered, buried

    def moment(self) -> Moment:
        return Moment(0.0, 0)

    def take(self, claim: Claim, record: Record, moment: Moment) -> Delivery | None:
        claim.open += 1
        if record.offset in KILLERS:
            raise Death
        self.answered.add(record.offset)
        claim.answered(record.offset)
        return None

    def bury(self, claim: Claim, record: Record, message: str, attempts: int) -> None:
        claim.open += 1
        self.buried[record.offset] = attempts
        claim.answered(record.offset)

    async def live(self, start: int) -> int:
        """Returns what it got to commit."""
        await self.journal.open()
        past = (await self.journal.claim(TOPIC, {0: (start, start < END)}))[0]
        careful = start + 100 if past.claims >= CAREFUL_CLAIMS else 0
        claim = Claim(Partition(TOPIC, 0), start, suspects=past.suspects, careful_until=careful)
        loop = asyncio.get_running_loop().create_task(self.suspects.careful_loop(self, cast("Any", None)))
        with contextlib.suppress(Death):
            for offset in range(start, END):
                record = cast("Record", SimpleNamespace(topic=TOPIC, partition=0, offset=offset))
                claim.tracker.receive(offset)
                if claim.is_suspect(offset):
                    self.suspects.put(claim, record)
                else:
                    self.take(claim, record, self.moment())
            waits = loop.get_loop().create_task(claim.settle())
            await asyncio.wait([loop, waits], return_when=asyncio.FIRST_COMPLETED)
            waits.cancel()
        if claim.tracker.commit_point > start:
            self.journal.progressed(TOPIC, 0)
        loop.cancel()
        with contextlib.suppress(Death, asyncio.CancelledError):
            await loop
        await self.journal.close()
        return claim.tracker.commit_point


async def test_records_that_kill_the_decoder_are_put_aside_and_all_others_are_answered(pool: Pool) -> None:
    answered: set[int] = set()
    buried: dict[int, int] = {}
    at, lives = 0, 0
    while at < END and lives < 30:
        lives += 1
        at = await Life(pool, lives, answered, buried).live(at)
    assert at == END
    assert buried == dict.fromkeys(KILLERS, 3)
    assert answered == set(range(END)) - KILLERS
    assert lives <= 1 + len(KILLERS) * (CAREFUL_CLAIMS + 3)
