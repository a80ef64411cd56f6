"""The timeline of a request or of a pipeline's job, from its records. Pure.

When a step was asked is the append time of its request. How long it was queued, batched and computed, and by whom, is
said by the record that came of it: the next step's request, a part or the response carries the receipt. The parts of
a stream say nothing of that; many in a row are one event.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from contracts.adapters.kafka import Record
from contracts.codec import decode_headers, decode_request, decode_response, decode_response_body
from contracts.errors import InvalidRequest
from contracts.messages import Ran, Receipt, RequestHeaders
from contracts.parts import PartKind, decode_part, decode_part_headers
from deploy.cli.lineage import in_order


class Line(NamedTuple):
    """One record of a job; of a stream's parts, the first of so many `times` in a row. `receipt` is a response's."""

    at_ms: int
    kind: str
    step: str
    branch: tuple[int, ...]
    record: Record
    ran: Ran | None = None
    detail: str = ""
    headers: RequestHeaders | None = None
    receipt: Receipt | None = None
    times: int = 1


def lines_of(records: Iterable[Record], prefix: str) -> list[Line]:
    """What each record says, parents before children; what cannot be read says so."""
    found: list[Line] = []
    for record in records:
        kind = record.topic.removeprefix(f"{prefix}.").partition(".")[0]
        try:
            line = _line(record, kind)
        except InvalidRequest as exc:
            line = Line(record.timestamp, kind, "", (), record, detail=f"unreadable: {exc}")
        if found and line.kind == found[-1].kind == "partial" and line.detail == found[-1].detail:
            found[-1] = found[-1]._replace(times=found[-1].times + 1)
        else:
            found.append(line)
    return in_order(found)


def _line(record: Record, kind: str) -> Line:
    if kind == "replies":
        return _response(record)
    if kind == "joins":
        return _part(record)
    headers = decode_headers(record.headers)
    hop = headers.hop
    ran = None
    if kind == "requests" and record.value:
        ran = decode_request(record.value).ran
    texts = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    detail = texts.get("retry-message", "") if kind == "retry" else texts.get("dead-message", "")
    name = {"requests": "asked" if hop is None or hop.step else "submitted"}.get(kind, kind)
    step, branch = (hop.step, hop.branch) if hop is not None else ("", ())
    return Line(record.timestamp, name, step, branch, record, ran, detail, headers)


def _response(record: Record) -> Line:
    response, _ = decode_response(record.headers, record.value)
    if not response.final:
        return Line(record.timestamp, "partial", "", (), record, detail=f"of run {response.run}")
    detail = response.status.value + (f": {response.error.message}" if response.error else "")
    if response.index:
        detail += f", {response.index} parts before"
    ran = decode_response_body(record.value or b"").ran
    return Line(record.timestamp, "response", "", (), record, ran, detail, receipt=response.receipt)


def _part(record: Record) -> Line:
    headers = decode_part_headers(record.headers)
    hop = headers.hop
    if headers.kind is PartKind.MARKER:
        return Line(record.timestamp, "marker", hop.step, hop.branch, record, headers=headers.request)
    body = decode_part(record.value)
    detail = f"{headers.kind.value} from {headers.source}"
    if body.failure is not None:
        detail += f": {body.failure.status.value}: {body.failure.message}"
    if body.width is not None:
        detail += f": {body.width} rows"
    return Line(record.timestamp, "part", hop.step, hop.branch, record, body.ran, detail, headers.request)


def describe(request_id: str, lines: Sequence[Line]) -> dict[str, Any]:
    """The timeline as plain data; times in milliseconds after the first record."""
    first = min((line.at_ms for line in lines), default=0)
    hop = next((line.headers.hop for line in lines if line.headers and line.headers.hop), None)
    answers = sorted((line for line in lines if line.kind == "response"), key=lambda line: line.at_ms)
    return {
        "id": request_id,
        "pipeline": hop.pipeline if hop is not None else None,
        "plan": hop.plan if hop is not None else None,
        "first_unix_ms": first,
        "took_ms": answers[0].at_ms - first if answers else None,
        "status": re.split("[:,]", answers[0].detail)[0] if answers else None,
        "steps": _steps(lines, first),
        "events": [_event(line, first) for line in lines],
    }


def _steps(lines: Sequence[Line], first: int) -> list[dict[str, Any]]:
    receipts: dict[tuple[str, tuple[int, ...]], Receipt] = {}
    ended: dict[tuple[str, tuple[int, ...]], int] = {}
    for line in lines:
        if line.ran is not None:
            key = line.ran.step, line.ran.branch
            receipts.setdefault(key, line.ran.receipt)
            ended.setdefault(key, line.at_ms)
        if line.receipt is not None:  # of a request that one worker has answered, it is all there is
            receipts.setdefault(("", ()), line.receipt)
            ended.setdefault(("", ()), line.at_ms)
    found: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
    last = [line for line in lines if line.kind == "asked"]
    last = last or [line for line in lines if line.kind == "submitted"]  # one worker has done it all
    for line in last:
        key = line.step, line.branch
        known = found.get(key)
        if known is not None:
            known["asked"] += 1
            continue
        receipt = receipts.get(key)
        at = ended.get(key)
        if receipt is None and not any(other.step for other in last):  # a direct request: the response has it
            receipt, at = receipts.get(("", ())), ended.get(("", ()))
        found[key] = {
            "step": line.step,
            "branch": ".".join(map(str, line.branch)),
            "topic": line.record.topic,
            "asked_ms": line.at_ms - first,
            "ended_ms": None if at is None else at - first,
            "asked": 1,
            **_times(receipt),
        }
    return list(found.values())


def _times(receipt: Receipt | None) -> dict[str, Any]:
    known = receipt or Receipt()
    return {
        "queued_ms": known.queued_us / 1000 if receipt else None,
        "batched_ms": known.batched_us / 1000 if receipt else None,
        "computed_ms": known.computed_us / 1000 if receipt else None,
        "batch_rows": known.batch_rows if receipt else None,
        "attempt": known.attempt if receipt else None,
        "worker": known.worker,
        "device": known.device,
    }


def _event(line: Line, first: int) -> dict[str, Any]:
    return {
        "at_ms": line.at_ms - first,
        "kind": line.kind,
        "step": line.step,
        "branch": ".".join(map(str, line.branch)),
        "where": f"{line.record.topic}/{line.record.partition}/{line.record.offset}",
        "detail": line.detail if line.times == 1 else f"{line.times} {line.detail}",
    }
