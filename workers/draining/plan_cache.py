"""The plans that a worker has met, and the topics that they lead to.

A plan is fetched once, by the first record that names it, and kept: it never changes. Nothing waits meanwhile but what
needs that plan. With a plan come the partition counts of the models' topics that it asks, which are read again now and
then, since topics grow and models are deployed later.

One that the store has lost is compiled again, or waited for: whoever works with it puts it back within seconds. What
nobody brings back in that time is told to be unknown, and so are those that come when too many are waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from contracts import topics
from contracts.adapters.kafka import Producer, TopicMissing
from contracts.adapters.plans import KEEP_SECONDS, PlanStore
from contracts.clock import Clock
from contracts.errors import InvalidRequest, TransportError
from contracts.messages import Hop, Status
from contracts.partitioner import Partitioner
from contracts.plans import Failure, Plan, decode
from workers.draining.lost_plans import LostPlans

log = logging.getLogger(__name__)

KEPT = 256
"""Plans: each rollout of a model in a pipeline makes a new one."""
REFRESH_SECONDS = 10.0
PATIENCE_SECONDS = 3 * KEEP_SECONDS
"""How long a plan that is not in the store is waited for."""
MOST_AWAITED = 64
"""Plans that are waited for at a time: anybody can name plans that never were."""
_RETRY_SECONDS = 0.5
_LONGEST_RUN = 16  # records for one partition in a row, so that they share a batch there

Then = Callable[[Plan | None], None]


def unknown_plan(digest: str) -> Failure:
    """How a job ends whose plan nobody brings back. Its submitter has it, and may try again."""
    text = f"plan {digest} is not known (any more): submit the job again"
    return Failure(Status.INTERNAL, text, "", retryable=True)


class PlanCache:
    """Plans by digest."""

    def __init__(
        self, store: PlanStore, producer: Producer, clock: Clock, *, prefix: str, lost: LostPlans | None = None
    ) -> None:
        """`lost` makes plans again that the store has lost."""
        self._store = store
        self._lost = lost
        self._producer = producer
        self._clock = clock
        self._prefix = prefix
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._waiting: dict[str, list[Then]] = {}
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._used: set[str] = set()
        self._topics: dict[str, Partitioner | None] = {}

    def get(self, digest: str) -> Plan | None:
        """A plan that is known already."""
        plan = self._plans.get(digest)
        if plan is not None:
            self._plans.move_to_end(digest)
            self._used.add(digest)
        return plan

    def fetch(self, hop: Hop) -> None:
        """Have a plan at hand soon."""
        digest = hop.plan
        if digest not in self._plans and digest not in self._fetches:
            work = self._fetch(digest, hop.pipeline)
            self._fetches[digest] = asyncio.get_running_loop().create_task(work, name=f"plan {digest}")

    def when(self, hop: Hop, then: Then) -> None:
        """Call back with a job's plan: at once when it is known, else when it came; None when there is no such plan."""
        plan = self.get(hop.plan)
        if plan is not None:
            then(plan)
            return
        self._waiting.setdefault(hop.plan, []).append(then)
        self.fetch(hop)

    def add(self, plan: Plan) -> None:
        """Keep a plan that was made here."""
        self._plans[plan.digest] = plan
        if len(self._plans) > KEPT:
            self._plans.popitem(last=False)

    def partition_of(self, topic: str) -> int | None:
        """Where the next request for a model goes; None when its topic was not found."""
        partitioner = self._topics.get(topic)
        if partitioner is None:
            self._topics.setdefault(topic, None)  # to be looked for at the next refresh
            return None
        return partitioner.next(self._clock.monotonic(), 2 * _LONGEST_RUN * partitioner.partitions)

    async def prepare(self, plan: Plan) -> None:
        """Learn of the topics that a plan leads to. Raises TransportError."""
        names = [topics.requests(self._prefix, model.model, model.version) for model in plan.models]
        laned = [topics.requests(self._prefix, model.model, model.version) for model in plan.laned]
        names += [topics.lane(topic, priority) for topic in laned for priority in topics.LANES]
        await asyncio.gather(*(self._measure(name) for name in names if self._topics.get(name) is None))

    async def refresh_loop(self) -> None:
        """Keep up with topics that grow or appear, and put back plans in use that the store has lost."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await asyncio.gather(*(self._measure(name) for name in list(self._topics)))
            except TransportError as exc:
                log.warning("the topics of pipelines' models are unknown: %s", exc)
            try:
                await self._put_back()
            except TransportError as exc:
                log.warning("whether the store has all plans is unknown: %s", exc)

    async def _put_back(self) -> None:
        used, self._used = self._used, set()
        for plan in [self._plans[digest] for digest in used & self._plans.keys()]:  # others may come and go meanwhile
            if await self._store.restore(plan.digest, plan.encoded):
                log.warning("plan %s was lost, and is put back", plan.digest)

    async def _measure(self, topic: str) -> None:
        try:
            count = await self._producer.partitions(topic)
        except TopicMissing:
            count = 0
        known = self._topics.get(topic)
        if not count:
            self._topics[topic] = None
        elif known is None:
            self._topics[topic] = Partitioner(count, first=0, longest_run=_LONGEST_RUN)
        else:
            known.grow(count)

    async def _fetch(self, digest: str, pipeline: str) -> None:
        """Never gives up while Redis or Kafka are away: the records that wait for this plan would have no outcome."""
        try:
            plan = await self._load(digest, pipeline)
        finally:
            self._fetches.pop(digest, None)  # whoever is called back may ask for it again
        if plan is not None:
            self.add(plan)
        for then in self._waiting.pop(digest, ()):
            try:
                then(plan)
            except Exception:  # the others that wait for this plan must not suffer for one
                log.exception("what waited for plan %s cannot go on", digest)

    async def _load(self, digest: str, pipeline: str) -> Plan | None:
        until = self._clock.monotonic() + (PATIENCE_SECONDS if len(self._fetches) <= MOST_AWAITED else 0)
        while True:
            try:
                plan = await self._stored(digest, pipeline)
                if plan is not None:
                    await self.prepare(plan)
                    return plan
                if self._clock.monotonic() >= until:
                    log.warning("there is no plan %s of %s", digest, pipeline)
                    return None
            except InvalidRequest as exc:
                log.warning("plan %s: %s", digest, exc)
                return None
            except TransportError as exc:
                log.warning("plan %s is fetched again: %s", digest, exc)
            except Exception:  # let through, what waits for this plan would have no outcome for ever
                log.exception("plan %s of %s cannot be had", digest, pipeline)
                return None
            await asyncio.sleep(_RETRY_SECONDS)

    async def _stored(self, digest: str, pipeline: str) -> Plan | None:
        raw = await self._store.get(digest)
        if raw is not None:
            return decode(raw)
        plan = None if self._lost is None else await self._lost.again(digest, pipeline)
        if plan is not None:
            log.warning("plan %s of %s was lost, and is made again", digest, pipeline)
            await self._store.restore(digest, plan.encoded)
        return plan

    async def stop(self) -> None:
        """Give up what is being fetched; its records stay unanswered and are done again by the next owner."""
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
