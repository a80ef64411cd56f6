"""What travels on a joins topic: the parts of jobs, and the markers that say which of them are done.

A part is what one branch of a job has come to: values, an error, a skip, or (from a map) how many branches there will
be. All parts of a job go to the partition `crc32(job) mod joins`, where `joins` is the partition count that was fixed
when the pipeline was registered; so one joiner sees them in one order, and a topic that grows splits no job.

Headers are a request's (`v id ttl re priority tenant traceparent job plan pl step branch`, `step` being the join that
the part is for) and

    part   who sends it: the step of that name, for a gather the number of the row
    kind   value | error | skip | width | marker

The body is a msgpack map: `env` (tensors named `<step>.<tensor>`), `failure`, `width`, and `ran` as in a request. A
marker's body says what it covers; `workers.joiner` has the rule of the marker.
"""

from __future__ import annotations

import zlib
from enum import StrEnum
from typing import TypeVar

import msgspec

from contracts.codec import Headers, decode_headers, encode_headers
from contracts.errors import InvalidRequest
from contracts.messages import Hop, Ran, RequestHeaders, Status
from contracts.tensors import Tensor

MAX_SOURCE_CHARACTERS = 512
_encoder = msgspec.msgpack.Encoder()


class PartKind(StrEnum):
    """What a record on a joins topic is."""

    VALUE = "value"
    ERROR = "error"
    SKIP = "skip"
    WIDTH = "width"
    MARKER = "marker"


class PartFailure(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The error that a branch ended with, and the step whose own failure it was."""

    status: Status
    message: str
    step: str = ""
    retryable: bool = False


class PartHeaders(msgspec.Struct, frozen=True, gc=False):
    """A part's control data: those of the request that it would become, who sends it, and what it is."""

    request: RequestHeaders
    hop: Hop
    kind: PartKind
    source: str = ""


class PartBody(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a part carries: values known on this branch, and its error or width."""

    env: tuple[Tensor, ...] = ()
    failure: PartFailure | None = None
    width: int | None = None
    ran: Ran | None = None


class MarkerBody(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a marker says of one join: it was fired, or refused, and which of its parts that settles.

    It covers all parts of its join up to `last_offset`. `is_closing`: whatever else comes of it is a repetition. Until
    then `seen` names the sources that came, of `expected` in all (None: not known yet), and at `until_unix_ms` by the
    broker's clock it is closed whatever is still missing. `is_refused`: its job was not taken in, for want of room or
    of a plan.
    """

    seen: tuple[str, ...] = ()
    last_offset: int = -1
    is_closing: bool = False
    until_unix_ms: int = 0
    expected: int | None = None
    is_refused: bool = False


_Body = TypeVar("_Body", PartBody, MarkerBody)
_part_decoder = msgspec.msgpack.Decoder(PartBody)
_marker_decoder = msgspec.msgpack.Decoder(MarkerBody)


def joins_partition(job: str, joins: int) -> int:
    """The partition of all parts of a job."""
    return zlib.crc32(job.encode()) % joins


def encode_part_headers(headers: PartHeaders) -> list[tuple[str, bytes]]:
    """The record headers of a part or a marker."""
    pairs = encode_headers(headers.request)
    pairs.append(("kind", headers.kind.value.encode()))
    if headers.source:
        pairs.append(("part", headers.source.encode()))
    return pairs


def decode_part_headers(pairs: Headers) -> PartHeaders:
    """Read a part's headers. Raises InvalidRequest when they are none of a part."""
    pairs = list(pairs)
    request, found = decode_headers(pairs), dict(pairs)
    if request.hop is None or not request.hop.step:
        msg = "a part names its job, plan, pipeline and step"
        raise InvalidRequest(msg)
    try:
        kind = PartKind((found.get("kind") or b"").decode())
        source = (found.get("part") or b"").decode()
    except (ValueError, UnicodeDecodeError) as exc:
        msg = f"header kind must be one of {', '.join(PartKind)}, header part text"
        raise InvalidRequest(msg) from exc
    if len(source) > MAX_SOURCE_CHARACTERS or (not source and kind is not PartKind.MARKER):
        msg = f"header part must be 1 to {MAX_SOURCE_CHARACTERS} characters"
        raise InvalidRequest(msg)
    return PartHeaders(request, request.hop, kind, source)


def encode_part(body: PartBody) -> bytes:
    """The body of a part."""
    return _encoder.encode(body)


def decode_part(value: bytes | None) -> PartBody:
    """Read a part's body; its tensors are views of `value`. Raises InvalidRequest when it is none."""
    return _decode(_part_decoder, value, "part")


def encode_marker(body: MarkerBody) -> bytes:
    """The body of a marker."""
    return _encoder.encode(body)


def decode_marker(value: bytes | None) -> MarkerBody:
    """Read a marker's body. Raises InvalidRequest when it is none."""
    return _decode(_marker_decoder, value, "marker")


def _decode(decoder: msgspec.msgpack.Decoder[_Body], value: bytes | None, what: str) -> _Body:
    try:
        return decoder.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"the body is no {what}: {exc}"
        raise InvalidRequest(msg) from exc
