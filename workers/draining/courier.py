"""What a plan wants to happen, carried out: all of it is published and acknowledged before anything is called done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress

from msgspec import structs

from contracts import topics
from contracts.clock import Clock
from contracts.codec import decode_request
from contracts.emissions import Job, Outbound, failed, outbound
from contracts.messages import Ran, Status
from contracts.parts import joins_partition
from contracts.plans import OUTPUT, Answer, Ask, Emission, Failure, Part
from workers.draining import metrics
from workers.draining.graves import Graves
from workers.draining.large_hops import LargeHops
from workers.draining.publisher import Publisher

log = logging.getLogger(__name__)

_counters = {kind: metrics.EMISSIONS.labels(kind.__name__.lower()) for kind in (Ask, Part, Answer)}

_LARGE_BYTES = 16 * 1024
"""No topic takes records of fewer bytes only."""

Done = Callable[[object], None]
Unroutable = Callable[[str, Done], None]
"""Keeps a job's answer that has nowhere to go, says so, and calls on."""


class Shipment:
    """Emissions that belong together: `done` is called once, when the last of them is acknowledged."""

    __slots__ = ("_done", "_left", "deadline", "job", "unroutable")

    def __init__(self, job: Job, deadline: float, done: Done, unroutable: Unroutable | None) -> None:
        """`deadline` is the job's, in seconds on the monotonic clock."""
        self.job = job
        self.deadline = deadline
        self.unroutable = unroutable
        self._done = done
        self._left = 1

    def expect(self, count: int) -> None:
        """Wait for so many more."""
        self._left += count

    def settled(self, _: object = None) -> None:
        """One of them is acknowledged, or can never be."""
        self._left -= 1
        if self._left == 0:
            self._done(None)


class Courier:
    """Publishes emissions on behalf of one worker."""

    def __init__(
        self, publisher: Publisher, clock: Clock, *, prefix: str, partition_of: Callable[[str], int | None]
    ) -> None:
        self._publisher = publisher
        self._clock = clock
        self._prefix = prefix
        self._partition_of = partition_of
        self.large_hops: LargeHops | None = None
        """Where tensors go that do not fit into a record; without it, what is too large fails its step."""
        self.graves: Graves | None = None
        """Keeps answers that have nowhere to go, where nobody else does."""

    def send(
        self,
        job: Job,
        emissions: Sequence[Emission],
        deadline: float,
        done: Done,
        *,
        ran: Ran | None = None,
        unroutable: Unroutable | None = None,
    ) -> None:
        """Publish; `done` is called when everything is acknowledged, and never before. The tensors of the emissions
        are encoded before this returns.
        """
        shipment = Shipment(job, deadline, done, unroutable)
        self._ship(shipment, emissions, ran)
        shipment.settled()

    def _ship(self, shipment: Shipment, emissions: Sequence[Emission], ran: Ran | None) -> None:
        left_ms = int((shipment.deadline - self._clock.monotonic()) * 1000)
        fitting = self._without_large(shipment, emissions, ran)
        records = outbound(
            shipment.job, fitting, left_ms, prefix=self._prefix, partition_of=self._partition_of, ran=ran
        )
        shipment.expect(len(records))
        for record in records:
            emission = record.emission
            _counters[type(emission)].inc()
            if record.partition is None:
                self._unroutable(shipment, record)
            else:
                copy = (record.value, record.headers, record.key)
                lost = (partial(self._lost, shipment), record)
                diverted = None
                if isinstance(emission, Answer) and self._may_keep(shipment):  # one that takes nothing
                    diverted = (partial(self._unroutable, shipment), record)
                self._publisher.publish(record.topic, record.partition, copy, (shipment.settled, None), lost, diverted)

    def _without_large(self, shipment: Shipment, emissions: Sequence[Emission], ran: Ran | None) -> Sequence[Emission]:
        """The emissions that can go at once; the others follow when their tensors are stored."""
        large, plan = self.large_hops, shipment.job.plan
        if large is None:
            return emissions
        concerned = [large.concerns(plan, emission) for emission in emissions]
        if not any(concerned):
            return emissions

        def stored(small: Emission) -> None:
            self._ship_small(shipment, small, ran)

        def failed(emission: Emission, why: str) -> None:
            self._ship(shipment, _undone(shipment.job, emission, why), None)
            shipment.settled()

        for emission in compress(emissions, concerned):
            shipment.expect(1)
            large.put(plan, emission, shipment.job.tenant, stored, failed)
        return [emission for emission, is_large in zip(emissions, concerned, strict=True) if not is_large]

    def _ship_small(self, shipment: Shipment, emission: Emission, ran: Ran | None) -> None:
        self._ship(shipment, (emission,), ran)
        shipment.settled()

    def _lost(self, shipment: Shipment, record: Outbound) -> None:
        """A record's topic does not exist, or does not take a record of its size."""
        emission = record.emission
        text = f"{record.topic} does not exist or does not take {len(record.value)} bytes"
        if isinstance(emission, Answer):
            self._answer_lost(shipment, record, text)
            return
        if isinstance(emission, Ask):
            emission = _as_written(emission, record.value)
        self._ship(shipment, _undone(shipment.job, emission, text), None)
        shipment.settled()

    def _answer_lost(self, shipment: Shipment, answer: Outbound, why: str) -> None:
        """If it was too large for its topic, a small one that says so is not."""
        if len(answer.value) < _LARGE_BYTES:  # it is the topic, then
            self._unroutable(shipment, answer)
            return
        (small,) = outbound(
            shipment.job,
            _undone(shipment.job, answer.emission, why),
            0,
            prefix=self._prefix,
            partition_of=lambda _: None,
        )
        assert small.partition is not None  # noqa: S101 - the answer had one
        lost = (partial(self._unroutable, shipment), answer)
        copy = (small.value, small.headers, small.key)
        self._publisher.publish(small.topic, small.partition, copy, (shipment.settled, None), lost)

    def _may_keep(self, shipment: Shipment) -> bool:
        """Whether an answer may leave the buffer without its caller: nothing of it is lost then."""
        return self.graves is not None or shipment.unroutable is not None

    def _unroutable(self, shipment: Shipment, record: Outbound) -> None:
        job = shipment.job
        text = (
            f"{record.topic} is no reply topic, has no such partition or does not take these {len(record.value)} bytes"
        )
        if job.reply is None:  # nobody asked for the result: that the job ran is the outcome
            shipment.settled()
        elif shipment.unroutable is not None:
            shipment.unroutable(text, shipment.settled)
        elif self.graves is not None:
            self.graves.keep_answer(job, record, self._joins_of(job), text, shipment.settled)
        else:
            log.warning("the answer of job %s has nowhere to go: %s", job.id, job.reply)
            shipment.settled()

    def _joins_of(self, job: Job) -> str:
        """Where the parts of a job have met."""
        pipeline = job.plan.pipeline
        topic = topics.joins(self._prefix, pipeline.model, pipeline.version)
        return f"{topic}/{joins_partition(job.id, job.plan.partitions)}/-"


def _as_written(ask: Ask, body: bytes) -> Ask:
    """A request with the values of its record: its own were views of what may hold another batch by now."""
    written = decode_request(body)
    carried = {tensor.name: tensor for tensor in written.carried}
    return structs.replace(ask, inputs=written.inputs, carried=carried)


def _undone(job: Job, emission: Emission, why: str) -> list[Emission]:
    """What follows when an emission cannot be carried out."""
    if isinstance(emission, Ask):
        return failed(job.plan, emission, Failure(Status.INTERNAL, why, emission.node, retryable=True))
    step = emission.join if isinstance(emission, Part) else OUTPUT
    return [Answer(failure=Failure(Status.INTERNAL, why, step, retryable=isinstance(emission, Answer)))]
