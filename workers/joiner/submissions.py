"""Draining a pipeline's request topic: jobs that begin with more than one request are taken apart here.

Whatever a job begins with is published and acknowledged before its record counts as answered; done twice, it makes the
same records with the same ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from contracts.adapters.kafka import Partition, Reader, Record
from contracts.advance import start
from contracts.codec import decode_address, decode_headers, decode_request
from contracts.emissions import Job
from contracts.errors import (
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    TransportError,
)
from contracts.messages import Parameters, RequestBody, RequestHeaders, Status, status_of
from contracts.names import ModelVersion
from contracts.plans import INPUT, Answer, Emission, Failure, Plan
from contracts.tensors import Tensor
from workers.draining.claim import Claim
from workers.draining.metrics import count_spared
from workers.draining.offsets import Arrival
from workers.draining.plan_cache import unknown_plan
from workers.draining.topic import Bounds, TopicDrain
from workers.joiner import metrics
from workers.joiner.settings import JoinerGroup
from workers.joiner.tools import Tools

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
_ROOM_SECONDS = 0.05


class Submissions(TopicDrain):
    """The partitions of one pipeline's request topic that this joiner owns."""

    def __init__(
        self,
        key: ModelVersion,
        topic: str,
        reader: Reader,
        tools: Tools,
        *,
        settings: JoinerGroup,
        may_take: Callable[[], bool],
    ) -> None:
        super().__init__(topic, reader, settings=settings, may_take=may_take)
        self._key = key
        self._tools = tools

    async def _opened(self, starts: Mapping[Partition, Bounds]) -> list[Claim]:
        return [Claim(partition, begin) for partition, (begin, _) in starts.items()]

    def _silence(self, claims: Iterable[Claim]) -> None:
        """What was begun is on its way already."""

    async def _room(self) -> bool:
        if self._tools.publisher.has_room:
            return True
        await asyncio.sleep(_ROOM_SECONDS)
        return False

    async def _take_records(self, claim: Claim, records: Sequence[Record]) -> None:
        for record in records:
            if claim.giving:
                return
            arrival = claim.tracker.receive(record.offset)
            if arrival is Arrival.NEXT:
                claim.open += 1
                await self._take(claim, record)
            elif arrival is Arrival.GAP:
                self._gap(claim, record)
                return

    async def _take(self, claim: Claim, record: Record) -> None:
        try:
            headers = decode_headers(record.headers)
        except InvalidRequest as error:
            name, reply = decode_address(record.headers)
            self._refuse(claim, record, RequestHeaders(name, reply), error)
            return
        left = self._left(headers, record)
        try:
            body = self._checked(headers, record, left)
            if headers.hop is not None:
                then = partial(self._planned, claim, record, headers, body)
                self._tools.plans.when(headers.hop, then)
                return
            plan = await self._current()
        except RequestError as error:
            self._refuse(claim, record, headers, error)
        else:
            self._start(claim, record, headers, body, plan)

    def _planned(
        self, claim: Claim, record: Record, headers: RequestHeaders, body: RequestBody, plan: Plan | None
    ) -> None:
        """The plan that a submission names was found, or not."""
        assert headers.hop is not None  # noqa: S101 - it named one
        if claim.is_over:
            claim.dropped()  # the next owner reads it again
        elif plan is not None and plan.pipeline == self._key:
            self._start(claim, record, headers, body, plan)
        elif plan is not None:
            text = f"plan {headers.hop.plan} is one of {plan.pipeline}"
            self._refuse(claim, record, headers, InvalidRequest(text))
        elif self._may_take():
            failure = unknown_plan(headers.hop.plan)
            self._send(claim, record, self._job_without_plan(headers), [Answer(failure=failure)], 0.0)
        else:
            self._tools.plans.when(headers.hop, partial(self._planned, claim, record, headers, body))

    def _start(self, claim: Claim, record: Record, headers: RequestHeaders, body: RequestBody, plan: Plan) -> None:
        """Begin a job, when what is looked into at its head has come from the store."""
        metrics.STARTED.inc()
        job, ends = Job.of(headers, plan), self._tools.clock.monotonic() + self._left(headers, record)

        def send(emissions: list[Emission]) -> None:
            self._send(claim, record, job, emissions, ends - self._tools.clock.monotonic())

        self._tools.lookups.when(
            plan,
            INPUT,
            [{f"{INPUT}.{tensor.name}": tensor for tensor in body.inputs}],
            headers.tenant,
            lambda envs: send(_started(headers.id, plan, tuple(envs[0].values()), body.parameters)),
            lambda failure: send([Answer(failure=failure)]),
        )

    def _send(self, claim: Claim, record: Record, job: Job, emissions: list[Emission], left: float) -> None:
        settle = partial(self._answered, claim, record.offset)
        unroutable = partial(self._tools.graves.bury, record, job.id, "unroutable")
        deadline = self._tools.clock.monotonic() + left
        self._tools.courier.send(job, emissions, deadline, settle, unroutable=unroutable)

    @staticmethod
    def _answered(claim: Claim, offset: int, _: object) -> None:
        claim.answered(offset)

    def _left(self, headers: RequestHeaders, record: Record) -> float:
        waited_ms = max(0, self._tools.broker_time.now_ms() - record.timestamp)
        return (headers.ttl_ms - waited_ms) / 1000

    def _checked(self, headers: RequestHeaders, record: Record, left: float) -> RequestBody:
        if left <= 0:
            msg = f"the time to live of {headers.ttl_ms} ms ended before the job was begun"
            raise DeadlineExceeded(msg)
        if _job(headers) in self._tools.cancelled:
            msg = "cancelled before it was begun"
            raise Cancelled(msg)
        hop = headers.hop
        if hop is not None and (hop.step or hop.pipeline != str(self._key)):
            msg = f"the record is for step {hop.step or 'input'} of {hop.pipeline}, the topic takes jobs of {self._key}"
            raise InvalidRequest(msg)
        return decode_request(record.value)

    async def _current(self) -> Plan:
        while True:
            try:
                return await self._tools.plans.current()
            except (ConfigurationError, ModelNotFound) as exc:
                raise InvalidRequest(str(exc)) from exc
            except TransportError as exc:
                log.warning("the plan of %s is made again: %s", self._key, exc)
                await asyncio.sleep(_RETRY_SECONDS)

    def _refuse(self, claim: Claim, record: Record, headers: RequestHeaders, error: RequestError) -> None:
        failure = Failure(status_of(error), str(error), "", error.retryable)
        if headers.reply is None and failure.status is Status.INVALID:  # nobody would ever know
            settle = partial(self._answered, claim, record.offset)
            self._tools.graves.bury(record, headers.id, "invalid", str(error), settle)
            return
        self._send(claim, record, self._job_without_plan(headers), [Answer(failure=failure)], 0.0)

    def _job_without_plan(self, headers: RequestHeaders) -> Job:
        return Job.of(headers, Plan(pipeline=self._key, nodes=(), partitions=1))


def _job(headers: RequestHeaders) -> str:
    return headers.hop.job if headers.hop is not None else headers.id


def _started(name: str, plan: Plan, inputs: Sequence[Tensor], parameters: Parameters) -> list[Emission]:
    try:
        return start(plan, inputs, parameters, spared=count_spared)
    except Exception as exc:  # let through, it would leave the job without an outcome for ever
        log.exception("job %s cannot be begun", name)
        text = f"the job could not be begun: {type(exc).__name__}"
        return [Answer(failure=Failure(Status.INTERNAL, text, "", retryable=True))]
