"""From what a plan wants to happen next to the records that make it happen. Pure.

Every record of a job has an id that follows from the job, the node and the branch, so that a step which runs twice
publishes the same ids twice and everything behind it collapses. What cannot be sent, because it is too large or because
its model has no topic, is a failure of the step it is for: the plan then says what becomes of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from contracts import topics
from contracts.advance import advance
from contracts.codec import (
    encode_headers,
    encode_response,
    encode_response_headers,
    encode_step,
    encode_stream_headers,
)
from contracts.environment import put_failure
from contracts.messages import (
    MAX_TTL_MS,
    ErrorDetail,
    Hop,
    Parameters,
    Ran,
    Receipt,
    ReplyAddress,
    RequestBody,
    RequestHeaders,
    ResponseBody,
    Status,
)
from contracts.parts import (
    PartBody,
    PartFailure,
    PartHeaders,
    PartKind,
    encode_part,
    encode_part_headers,
    joins_partition,
)
from contracts.plans import INPUT, Answer, Ask, Emission, Env, Failure, Part, Plan, child_id

MAX_RECORD_BYTES = 1024 * 1024 - 16 * 1024
"""Below the broker's limit of 1 MiB for a whole batch, with room for headers."""
MAX_STEP_BYTES = 256 * 1024 * 1024
"""What one step may lead to: each of many rows carries copies of the values that are needed later."""
_MAX_REASON = 1024


class Job(msgspec.Struct, frozen=True):
    """What all records of a job have in common."""

    id: str
    plan: Plan
    reply: ReplyAddress | None
    priority: str = "normal"
    tenant: str = ""
    traceparent: str = ""
    stream: bool = False

    @classmethod
    def of(cls, headers: RequestHeaders, plan: Plan) -> Job:
        """The job that a record with these headers belongs to."""
        job = headers.hop.job if headers.hop is not None else headers.id
        return cls(job, plan, headers.reply, headers.priority, headers.tenant, headers.traceparent, headers.stream)


class Outbound(msgspec.Struct, frozen=True):
    """A record to be published. `partition` None: the job has no reply address, or one that is none of ours."""

    topic: str
    partition: int | None
    value: bytes
    headers: list[tuple[str, bytes]]
    key: bytes
    emission: Emission


def outbound(
    job: Job,
    emissions: Iterable[Emission],
    left_ms: int,
    *,
    prefix: str,
    partition_of: Callable[[str], int | None],
    ran: Ran | None = None,
) -> list[Outbound]:
    """The records for these emissions. `partition_of` chooses one of a request topic; None when there is no such topic.

    `ran` is the step that ended to make them, if one did.
    """
    found: list[Outbound] = []
    todo = deque(emissions)
    left_ms = min(max(0, left_ms), MAX_TTL_MS)
    size = 0
    while todo:
        emission = todo.popleft()
        if isinstance(emission, Part):
            record = _part(job, emission, left_ms, prefix, ran)
        elif isinstance(emission, Answer):
            record = _answer(job, emission, prefix, ran)
        else:
            asked = _ask(job, emission, left_ms, prefix, partition_of, ran)
            if isinstance(asked, Failure):
                todo += failed(job.plan, emission, asked)
                continue
            record = asked
        found.append(record)
        size += len(record.value)
        if size > MAX_STEP_BYTES:
            text = f"the step's {len(found) + len(todo)} records are more than {MAX_STEP_BYTES} bytes"
            step = ran.step if ran is not None else INPUT
            return [_answer(job, Answer(failure=Failure(Status.INTERNAL, text, step)), prefix, ran)]
    return found


def failed(plan: Plan, ask: Ask, failure: Failure) -> list[Emission]:
    """What follows when a model cannot even be asked."""
    try:
        return advance(plan, ask.node, ask.branch, failure, ask.carried)
    except Exception as exc:  # noqa: BLE001 - let through, it would leave the job without an outcome for ever
        text = f"what follows {ask.node} could not be found: {type(exc).__name__}"
        return [Answer(failure=Failure(Status.INTERNAL, text, ask.node))]


def _ask(
    job: Job, ask: Ask, left_ms: int, prefix: str, partition_of: Callable[[str], int | None], ran: Ran | None
) -> Outbound | Failure:
    topic = requests = topics.requests(prefix, ask.model.model, ask.model.version)
    partition = None
    if job.priority in topics.LANES and ask.model in job.plan.laned:
        topic = topics.lane(requests, job.priority)
        partition = partition_of(topic)
    if partition is None:  # no lane, or one that is still to be made
        topic, partition = requests, partition_of(requests)
    if partition is None:
        return Failure(Status.INTERNAL, f"model {ask.model} has no topic: it is not deployed", ask.node, retryable=True)
    headers, body = ask_record(job, ask, left_ms, ran)
    if len(body) > MAX_RECORD_BYTES:
        return Failure(Status.INTERNAL, _too_large(f"the request for step {ask.node}", len(body)), ask.node)
    return Outbound(topic, partition, body, encode_headers(headers), headers.id.encode(), ask)


def ask_record(job: Job, ask: Ask, left_ms: int, ran: Ran | None = None) -> tuple[RequestHeaders, bytes]:
    """The headers and the body of the request for a model."""
    ttl_ms = left_ms if ask.timeout_ms is None else min(left_ms, ask.timeout_ms)
    hop = _hop(job, ask.node, ask.branch, left_ms if ttl_ms < left_ms else None)
    headers = _headers(job, child_id(job.id, ask.node, ask.branch), ttl_ms, hop)
    return headers, encode_step(RequestBody(ask.inputs, ask.parameters, tuple(ask.carried.values()), ran))


def _part(job: Job, part: Part, left_ms: int, prefix: str, ran: Ran | None) -> Outbound:
    pipeline, partitions = job.plan.pipeline, job.plan.partitions
    body = _part_body(part, ran)
    if len(body) > MAX_RECORD_BYTES:
        part = _shrunk(job.plan, part, len(body))
        body = _part_body(part, ran)
    source = str(part.source)
    name = child_id(job.id, f"{source}>{part.join}", part.branch)
    request = _headers(job, name, left_ms, hop := _hop(job, part.join, part.branch))
    headers = encode_part_headers(PartHeaders(request, hop, PartKind(part.kind), source))
    topic = topics.joins(prefix, pipeline.model, pipeline.version)
    return Outbound(topic, joins_partition(job.id, partitions), body, headers, job.id.encode(), part)


def _part_body(part: Part, ran: Ran | None) -> bytes:
    why = part.failure
    failure = None if why is None else PartFailure(why.status, why.message[:_MAX_REASON], why.step, why.retryable)
    width = part.width if part.kind == "width" else None
    return encode_part(PartBody(tuple(part.env.values()), failure, width, ran))


def _shrunk(plan: Plan, part: Part, size: int) -> Part:
    """A part that no record holds, as the failure of its branch."""
    node = plan.by_name[part.join]
    step = part.source if isinstance(part.source, str) else node.branches[-1]
    failure = Failure(Status.INTERNAL, _too_large(f"what {step} sends to {part.join}", size), step)
    env: Env = {}
    put_failure(env, step, failure)
    return Part(part.join, part.branch, part.source, "error", env, failure)


def _answer(job: Job, answer: Answer, prefix: str, ran: Ran | None) -> Outbound:
    body = _answer_body(job, answer, ran)
    if len(body) > MAX_RECORD_BYTES:
        failure = Failure(Status.INTERNAL, _too_large("the result", len(body)), "output")
        answer = Answer(failure=failure)
        body = _answer_body(job, answer, ran)
    reply = job.reply
    status = Status.OK if answer.failure is None else answer.failure.status
    if reply is None:
        return Outbound("", None, body, [], b"", answer)
    if answer.run and status is Status.OK:
        headers = encode_stream_headers(job.id, status, reply.token, index=answer.index, run=answer.run)
    else:
        headers = encode_response_headers(job.id, status, reply.token)
    partition = reply.partition if topics.is_replies(prefix, reply.topic) else None
    return Outbound(reply.topic, partition, body, headers, job.id.encode(), answer)


def _answer_body(job: Job, answer: Answer, ran: Ran | None) -> bytes:
    model, version = job.plan.pipeline
    receipt = ran.whole if ran is not None else Receipt()
    if answer.failure is not None:
        text = answer.failure.message
        if answer.failure.step not in ("input", "output", ""):
            text = f"step {answer.failure.step}: {text}"
        detail = ErrorDetail(text[:_MAX_REASON], answer.failure.retryable)
        return encode_response(ResponseBody(model, version, error=detail, receipt=receipt, ran=ran))
    lists = {"skipped": answer.skipped, "missing": answer.missing}
    parameters: Parameters = {name: ",".join(steps) for name, steps in lists.items() if steps}
    body = ResponseBody(
        model, version, answer.outputs, receipt=receipt, parameters=parameters, index=answer.index, ran=ran
    )
    return encode_response(body)


def _hop(job: Job, step: str, branch: tuple[int, ...], left_ms: int | None = None) -> Hop:
    return Hop(job.id, job.plan.digest, str(job.plan.pipeline), step, branch, left_ms)


def _headers(job: Job, name: str, ttl_ms: int, hop: Hop) -> RequestHeaders:
    return RequestHeaders(
        id=name,
        reply=job.reply,
        ttl_ms=ttl_ms,
        priority=job.priority,
        tenant=job.tenant,
        traceparent=job.traceparent,
        hop=hop,
        stream=job.stream,
    )


def _too_large(what: str, size: int) -> str:
    return f"{what} is {size} bytes, above the limit of {MAX_RECORD_BYTES} for a record"
