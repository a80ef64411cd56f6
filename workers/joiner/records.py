"""Between records of a joins topic and what the joins are told. Pure."""

from __future__ import annotations

import logging

import msgspec

from contracts.adapters.kafka import Outgoing, Record
from contracts.advance import fire
from contracts.environment import put_failure
from contracts.errors import InvalidRequest
from contracts.messages import Status
from contracts.parts import (
    PartBody,
    PartHeaders,
    PartKind,
    decode_part,
    encode_marker,
    encode_part_headers,
)
from contracts.plans import Answer, Emission, Env, Failure, Node, Part, Plan, child_id
from workers.joiner.join import Arrival, Fire, Mark, Why

log = logging.getLogger(__name__)


def arrival_of(headers: PartHeaders, record: Record, plan: Plan) -> Arrival | None:
    """A part as it was read; None when the plan has no join that waits for it.

    A body that cannot be read is the failure of its branch.
    """
    node = plan.by_name.get(headers.hop.step)
    source = None if node is None else _source(node, headers.source)
    if node is None or source is None:
        return None
    try:
        body = decode_part(record.value)
        failure = None if body.failure is None else Failure(*msgspec.structs.astuple(body.failure))
        env = {tensor.name: tensor for tensor in body.env}
        kind = headers.kind
    except InvalidRequest as exc:
        body, kind, env = PartBody(), PartKind.ERROR, {}
        failure = _unreadable(node, source, str(exc), env)
    part = Part(node.name, headers.hop.branch, source, kind.value, env, failure, body.width or 0)  # type: ignore[arg-type]
    return Arrival(record.offset, headers, part, len(record.value or b""), record.timestamp, body.ran)


def _source(node: Node, text: str) -> str | int | None:
    """Who sent it: one of the branches, or a row of a gather."""
    if not node.is_join:
        return None
    if node.kind != "gather":
        return text if text in node.branches else None
    if text == node.branches[0]:
        return text
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None  # noqa: PLR2004


def _unreadable(node: Node, source: str | int, why: str, env: Env) -> Failure:
    step = source if isinstance(source, str) else node.branches[-1]
    failure = Failure(Status.INTERNAL, why, step)
    put_failure(env, step, failure)
    return failure


def emissions_of(decision: Fire) -> list[Emission]:
    """What a join becomes."""
    match decision.why:
        case Why.CANCELLED:
            return [Answer(failure=Failure(Status.CANCELLED, "cancelled by its caller", ""))]
        case Why.REFUSED:
            text = "the joiner has no room for another job"
            return [Answer(failure=Failure(Status.OVERLOADED, text, "", retryable=True))]
        case _:
            return _fired(decision)


def _fired(decision: Fire) -> list[Emission]:
    key = decision.key
    try:
        return fire(decision.plan, key.join, key.branch, decision.parts)
    except Exception as exc:  # let through, it would leave the job without an outcome for ever
        log.exception("job %s cannot go on behind %s", key.job, key.join)
        text = f"what follows could not be found: {type(exc).__name__}"
        return [Answer(failure=Failure(Status.INTERNAL, text, key.join))]


def unknown_plan(digest: str) -> list[Emission]:
    """How a job ends whose plan nobody has."""
    return [Answer(failure=Failure(Status.INVALID, f"plan {digest} is not known (any more): submit the job again", ""))]


def marker_record(mark: Mark) -> Outgoing:
    """The record of a marker."""
    hop = mark.headers.hop
    name = child_id(hop.job, f"marker>{hop.step}", hop.branch)
    request = msgspec.structs.replace(mark.headers.request, id=name)
    headers = PartHeaders(request, hop, PartKind.MARKER)
    return encode_marker(mark.body), encode_part_headers(headers), hop.job.encode()
