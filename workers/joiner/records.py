"""Between records of a joins topic and what the joins are told. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from contracts import advance
from contracts.adapters.kafka import Outgoing, Record
from contracts.advance import Spared, fire
from contracts.environment import put_failure
from contracts.errors import InvalidRequest
from contracts.messages import Status
from contracts.names import ModelVersion
from contracts.parts import (
    PartBody,
    PartHeaders,
    PartKind,
    decode_part,
    encode_marker,
    encode_part_headers,
)
from contracts.plans import MAX_DEPTH, Answer, Emission, Env, Failure, Node, Part, Plan, child_id
from workers.joiner.join import Arrival, Fire, Mark, Source, Why

log = logging.getLogger(__name__)


_NODES: Final = frozenset({PartKind.VALUE, PartKind.SKIP, PartKind.ERROR})
_MAPS: Final = frozenset({PartKind.WIDTH, PartKind.SKIP, PartKind.ERROR})


def arrival_of(headers: PartHeaders, record: Record, plan: Plan) -> Arrival | None:
    """A part as it was read; None when the plan has no join that waits for it.

    A body that cannot be read is the failure of its branch.
    """
    node = plan.by_name.get(headers.hop.step)
    source = None if node is None else _source(node, headers.source, plan)
    if node is None or source is None or len(headers.hop.branch) != _depth(node, plan):
        return None
    is_map = node.kind == "gather" and source == node.branches[0]
    if headers.kind not in (_MAPS if is_map else _NODES):
        return None
    try:
        body = decode_part(record.value)
        failure = None if body.failure is None else Failure(*msgspec.structs.astuple(body.failure))
        env = {tensor.name: tensor for tensor in body.env}
        kind = headers.kind
    except InvalidRequest as exc:
        body, kind, env = PartBody(), PartKind.ERROR, {}
        failure = _unreadable(node, source, str(exc), env)
    width = body.width or 0
    if not 0 <= width <= (_max_rows(node, plan) if is_map else 0):
        return None
    part = Part(node.name, headers.hop.branch, source, kind.value, env, failure, width)  # type: ignore[arg-type]
    return Arrival(record.offset, headers, part, len(record.value or b""), record.timestamp, body.ran)


def _source(node: Node, text: str, plan: Plan) -> Source | None:
    """Who sent it: one of the branches, or a row of a gather."""
    if not node.is_join:
        return None
    if node.kind != "gather":
        return text if text in node.branches else None
    if text == node.branches[0]:
        return text
    is_row = text.isascii() and text.isdigit() and len(text) < 10  # noqa: PLR2004
    return int(text) if is_row and int(text) < _max_rows(node, plan) else None


def _max_rows(gather: Node, plan: Plan) -> int:
    return plan.by_name[gather.branches[0]].max_rows


def _depth(node: Node, plan: Plan) -> int:
    """How many maps a node is inside of."""
    depth = 0
    while node.scope and depth <= MAX_DEPTH:
        node, depth = plan.by_name[node.scope], depth + 1
    return depth


def _unreadable(node: Node, source: str | int, why: str, env: Env) -> Failure:
    step = source if isinstance(source, str) else node.branches[-1]
    failure = Failure(Status.INTERNAL, why, step)
    put_failure(env, step, failure)
    return failure


def without_plan(headers: PartHeaders, record: Record, key: ModelVersion) -> tuple[Arrival, Plan]:
    """A part whose plan nobody knows, and what stands in for that: it says what the join is called, and no more."""
    hop, source = headers.hop, headers.source
    plan = Plan(pipeline=key, nodes=(Node(name=hop.step, kind="reduce", branches=(source,)),), partitions=1)
    part = Part(hop.step, hop.branch, source, "error", {})
    return Arrival(record.offset, headers, part, 0, record.timestamp), plan


def is_ready(plan: Plan, join: str, parts: Mapping[Source, Part]) -> bool:
    """Whether a join may be fired. What cannot even be looked at may, too: that ends its job, and nothing else."""
    try:
        return advance.is_ready(plan, join, parts)
    except Exception:
        log.exception("the parts of %s of %s make no sense", join, plan.pipeline)
        return True


def emissions_of(decision: Fire, spared: Spared | None = None) -> list[Emission]:
    """What a join becomes."""
    match decision.why:
        case Why.CANCELLED:
            return [Answer(failure=Failure(Status.CANCELLED, "cancelled by its caller", ""))]
        case Why.REFUSED:
            text = "the joiner has no room for another job"
            return [Answer(failure=Failure(Status.OVERLOADED, text, "", retryable=True))]
        case _:
            return _fired(decision, spared)


def _fired(decision: Fire, spared: Spared | None) -> list[Emission]:
    key = decision.key
    try:
        return fire(decision.plan, key.join, key.branch, decision.parts, spared=spared)
    except Exception as exc:  # let through, it would leave the job without an outcome for ever
        log.exception("job %s cannot go on behind %s", key.job, key.join)
        text = f"what follows could not be found: {type(exc).__name__}"
        return [Answer(failure=Failure(Status.INTERNAL, text, key.join))]


def marker_record(mark: Mark) -> Outgoing:
    """The record of a marker."""
    hop = mark.headers.hop
    name = child_id(hop.job, f"marker>{hop.step}", hop.branch)
    request = msgspec.structs.replace(mark.headers.request, id=name)
    headers = PartHeaders(request, hop, PartKind.MARKER)
    return encode_marker(mark.body), encode_part_headers(headers), hop.job.encode()
