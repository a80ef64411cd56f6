"""Records to messages and back: the only door to msgpack.

Decoding is typed, so what a record costs is in proportion to its bytes: unknown fields are skipped without being built,
and tensors stay views of the record. Whatever is wrong with a record surfaces as InvalidRequest, whose text never
quotes the record. Headers first: `decode_headers` needs nothing of the body, so that a record whose body is rubbish can
still be answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast, get_args

import msgspec

from contracts.errors import InvalidRequest, TransportError
from contracts.messages import (
    DEFAULT_TTL_MS,
    MAX_TTL_MS,
    WIRE_MAJOR,
    WIRE_VERSION,
    Hop,
    ReplyAddress,
    RequestBody,
    RequestHeaders,
    Response,
    ResponseBody,
    SequenceStep,
    Status,
)
from contracts.names import MAX_VERSION, NAME_PATTERN, Priority, is_name, is_request_id
from contracts.tensors import Tensor

Headers = Iterable[tuple[str, bytes | None]]
"""Record headers as they are read; a header's value may be null."""

MAX_INLINE_BYTES = 256 * 1024
"""Bodies up to this travel in the record; brokers refuse records above 1 MiB by default."""
MAX_TENSORS = 64
MAX_PARTITION = 1_000_000
MAX_ATTEMPTS = 1_000
MAX_STEP_CHARACTERS = 512  # a nested pipeline's step has the names of all it is inside of
_COMMON = frozenset({"v", "id", "re", "ttl"})
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
STREAM = ("stream", b"1")
"""The header of a request whose caller takes parts."""

_address = re.compile(r"([A-Za-z0-9._-]{1,249})/([0-9]{1,7})/([A-Za-z0-9._~-]{1,64})")
_digest = re.compile(r"[0-9a-f]{32}")
_pipeline = re.compile(rf"{NAME_PATTERN}@[1-9][0-9]{{0,9}}")
_branch = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9}){0,7}")
_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(RequestBody)
_response_decoder = msgspec.msgpack.Decoder(ResponseBody)
_kept_decoder = msgspec.msgpack.Decoder(Response)
_wire = WIRE_VERSION.encode()
_status_bytes = {status: status.value.encode() for status in Status}
_statuses = {raw: status for status, raw in _status_bytes.items()}


# --- requests ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _address_bytes(reply: ReplyAddress) -> bytes:
    return str(reply).encode()


@lru_cache(maxsize=1024)
def _number_bytes(number: int) -> bytes:
    return b"%d" % number


def encode_headers(headers: RequestHeaders) -> list[tuple[str, bytes]]:
    """The record headers of a request; fields that have their default are left out."""
    pairs = [("v", _wire), ("id", headers.id.encode()), ("ttl", _number_bytes(headers.ttl_ms))]
    if headers.reply is not None:
        pairs.append(("re", _address_bytes(headers.reply)))
    if headers.model is not None:
        pairs.append(("model", headers.model.encode()))
    if headers.version is not None:
        pairs.append(("version", _number_bytes(headers.version)))
    if headers.attempt != 1:
        pairs.append(("attempt", _number_bytes(headers.attempt)))
    if headers.priority != "normal":
        pairs.append(("priority", headers.priority.encode()))
    if headers.tenant:
        pairs.append(("tenant", headers.tenant.encode()))
    if headers.traceparent:
        pairs.append(("traceparent", headers.traceparent.encode()))
    if headers.hop is not None:
        pairs += _hop_pairs(headers.hop)
    return pairs + ([STREAM] if headers.stream else []) + encode_sequence(headers.sequence)


def encode_sequence(step: SequenceStep | None) -> list[tuple[str, bytes]]:
    """The record headers that make a request a step of a sequence."""
    if step is None:
        return []
    flags = (("sequence_start", step.start), ("sequence_end", step.end))
    return [("sequence_id", step.id.encode()), *((name, b"1") for name, is_set in flags if is_set)]


def _hop_pairs(hop: Hop) -> list[tuple[str, bytes]]:
    pairs = [("job", hop.job.encode()), *_place_pairs(hop.plan, hop.pipeline, hop.step)]
    if hop.branch:
        pairs.append(("branch", ".".join(map(str, hop.branch)).encode()))
    if hop.left_ms is not None:
        pairs.append(("job-ttl", _number_bytes(hop.left_ms)))
    return pairs


@lru_cache(maxsize=4096)
def _place_pairs(plan: str, pipeline: str, step: str) -> tuple[tuple[str, bytes], ...]:
    """What is the same for every job that comes to a step."""
    pairs = ("plan", plan.encode()), ("pl", pipeline.encode())
    return (*pairs, ("step", step.encode())) if step else pairs


def encode_request(inputs: Sequence[Tensor], parameters: Mapping[str, object] | None = None) -> bytes:
    """The body of a request. Raises InvalidRequest for parameters that are not scalars."""
    body = {"inputs": inputs, "parameters": parameters} if parameters else {"inputs": inputs}
    try:
        return _encoder.encode(body)
    except (TypeError, OverflowError) as exc:
        msg = f"the request cannot be encoded: {exc}; parameters may be str, int, float or bool"
        raise InvalidRequest(msg) from exc


def encode_step(body: RequestBody) -> bytes:
    """The body of a request that a pipeline makes, with what travels past its model."""
    return _encoder.encode(body)


def _collect(pairs: Headers) -> dict[str, bytes]:
    """Headers by name, the last of a name winning; a null value reads as an empty one."""
    found = dict(pairs)
    if None in found.values():
        return {name: value or b"" for name, value in found.items()}
    return cast("dict[str, bytes]", found)


def decode_address(pairs: Headers) -> tuple[str, ReplyAddress | None]:
    """The id and reply address of a record, as far as they can be read; ("", None) when they cannot.

    Never raises: this is what an answer to an otherwise unreadable record needs. A step of a job is answered as
    the job, since that is all that its caller knows.
    """
    found = _collect(pairs)
    try:
        name = (found.get("job") or found.get("id", b"")).decode("ascii")
        reply = _parse_address(found["re"]) if "re" in found else None
    except (UnicodeDecodeError, InvalidRequest):
        return "", None
    return (name, reply) if is_request_id(name) else ("", None)


def decode_headers(pairs: Headers) -> RequestHeaders:
    """Read a request's headers. Raises InvalidRequest for what is missing, malformed or of another major version."""
    found = _collect(pairs)
    try:
        version = found.get("v")
        if version != _wire:
            _check_wire_version(version)
        name = found["id"].decode("ascii")
        if not is_request_id(name):
            msg = "header id must be 1 to 64 letters, digits, '.', '_', '~' or '-'"
            raise InvalidRequest(msg)
        reply = _parse_address(found["re"]) if "re" in found else None
        ttl = _parse_number("ttl", found["ttl"], MAX_TTL_MS) if "ttl" in found else DEFAULT_TTL_MS
        if found.keys() <= _COMMON:
            return RequestHeaders(name, reply, ttl)
        return _with_options(name, reply, ttl, found)
    except KeyError as exc:
        msg = f"header {exc.args[0]} is missing"
        raise InvalidRequest(msg) from exc
    except UnicodeDecodeError as exc:
        msg = "a header is not valid text"
        raise InvalidRequest(msg) from exc


def _with_options(name: str, reply: ReplyAddress | None, ttl_ms: int, found: dict[str, bytes]) -> RequestHeaders:
    model = found["model"].decode() if "model" in found else None
    if model is not None and not is_name(model):
        msg = "header model is no valid model name"
        raise InvalidRequest(msg)
    priority = found["priority"].decode() if "priority" in found else "normal"
    if priority not in PRIORITIES:
        msg = f"header priority must be one of {', '.join(PRIORITIES)}"
        raise InvalidRequest(msg)
    return RequestHeaders(
        id=name,
        reply=reply,
        ttl_ms=ttl_ms,
        model=model,
        version=_parse_number("version", found["version"], MAX_VERSION) if "version" in found else None,
        attempt=_parse_number("attempt", found["attempt"], MAX_ATTEMPTS) if "attempt" in found else 1,
        priority=priority,
        tenant=_parse_tenant(found["tenant"]) if "tenant" in found else "",
        traceparent=found["traceparent"][:128].decode("ascii", "replace") if "traceparent" in found else "",
        hop=decode_hop(name, found) if "plan" in found else None,
        stream=found.get("stream") == STREAM[1],
        sequence=_parse_step(found) if "sequence_id" in found else None,
    )


def _parse_step(found: dict[str, bytes]) -> SequenceStep:
    name = found["sequence_id"].decode("ascii")
    if not is_request_id(name):
        msg = "header sequence_id must be 1 to 64 letters, digits, '.', '_', '~' or '-'"
        raise InvalidRequest(msg)
    return SequenceStep(name, found.get("sequence_start") == b"1", found.get("sequence_end") == b"1")


def decode_hop(request_id: str, found: Mapping[str, bytes]) -> Hop:
    """Where in a job a record with these headers stands. Raises InvalidRequest when they contradict themselves."""
    job = found.get("job", b"").decode("ascii") or request_id
    if not is_request_id(job):
        msg = "header job must be a request id"
        raise InvalidRequest(msg)
    plan, pipeline, step = _parse_place(found["plan"], found.get("pl", b""), found.get("step", b""))
    left = _parse_number("job-ttl", found["job-ttl"], MAX_TTL_MS) if "job-ttl" in found else None
    return Hop(job, plan, pipeline, step, _parse_branch(found.get("branch", b"")), left)


@lru_cache(maxsize=1024)
def _parse_place(raw_plan: bytes, raw_pipeline: bytes, raw_step: bytes) -> tuple[str, str, str]:
    """The plan, the pipeline and the step, which are the same for every job that comes there."""
    plan, pipeline, step = raw_plan.decode("ascii"), raw_pipeline.decode("ascii"), raw_step.decode("ascii")
    if _digest.fullmatch(plan) is None or _pipeline.fullmatch(pipeline) is None:
        msg = "the headers plan and pl must be a plan's digest and name@version"
        raise InvalidRequest(msg)
    if len(step) > MAX_STEP_CHARACTERS:
        msg = f"header step is longer than {MAX_STEP_CHARACTERS} characters"
        raise InvalidRequest(msg)
    return plan, pipeline, step


@lru_cache(maxsize=4096)
def _parse_branch(raw: bytes) -> tuple[int, ...]:
    if not raw:
        return ()
    if _branch.fullmatch(raw) is None:
        msg = "header branch must be row numbers with dots between them"
        raise InvalidRequest(msg)
    return tuple(int(number) for number in raw.split(b"."))


def _parse_tenant(raw: bytes) -> str:
    tenant = raw.decode("ascii")
    if tenant and not is_name(tenant):
        msg = "header tenant is no valid name"
        raise InvalidRequest(msg)
    return tenant


def _check_wire_version(raw: bytes | None) -> None:
    major, _, minor = (raw or b"").partition(b".")
    if not major.isdigit() or not minor.isdigit():
        msg = f"header v must be a protocol version such as {WIRE_VERSION}"
        raise InvalidRequest(msg)
    if major != b"%d" % WIRE_MAJOR:
        msg = f"protocol version {major[:8].decode()} is not spoken here, only {WIRE_MAJOR}"
        raise InvalidRequest(msg)


@lru_cache(maxsize=4096)
def _parse_number(name: str, raw: bytes, limit: int) -> int:
    if not raw.isdigit() or len(raw) > 12 or not 0 <= (number := int(raw)) <= limit:  # noqa: PLR2004
        msg = f"header {name} must be a whole number between 0 and {limit}"
        raise InvalidRequest(msg)
    return number


@lru_cache(maxsize=4096)
def _parse_address(raw: bytes) -> ReplyAddress:
    match = _address.fullmatch(raw.decode("ascii"))
    if match is None or int(match[2]) > MAX_PARTITION:
        msg = "header re must be <topic>/<partition>/<token>, the token 1 to 64 letters, digits, '.', '_', '~' or '-'"
        raise InvalidRequest(msg)
    return ReplyAddress(match[1], int(match[2]), match[3])


def decode_request(value: bytes | None) -> RequestBody:
    """Read a request's body; its tensors are views of `value`. Raises InvalidRequest when it is not one."""
    if not value:
        msg = "the body is empty"
        raise InvalidRequest(msg)
    try:
        body = _request_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:  # ValidationError is a DecodeError
        msg = f"the body is not a request: {exc}"
        raise InvalidRequest(msg) from exc
    except (RecursionError, MemoryError) as exc:
        msg = "the body is nested or sized beyond reason"
        raise InvalidRequest(msg) from exc
    if not 0 < len(body.inputs) <= MAX_TENSORS:
        msg = f"a request carries 1 to {MAX_TENSORS} input tensors, this one {len(body.inputs)}"
        raise InvalidRequest(msg)
    return body


# --- responses --------------------------------------------------------------------------------------------------------


def encode_response_headers(request_id: str, status: Status, token: str) -> list[tuple[str, bytes]]:
    """The record headers of a terminal response."""
    return [("v", _wire), ("id", request_id.encode()), ("status", _status_bytes[status]), ("to", token.encode())]


def encode_stream_headers(
    request_id: str, status: Status, token: str, *, index: int, run: str
) -> list[tuple[str, bytes]]:
    """The record headers of a part of a stream, the final one (OK) included."""
    place = [
        ("index", _number_bytes(index)),
        ("final", b"1" if status is Status.OK else b"0"),
        ("run", run.encode()),
    ]
    return [*encode_response_headers(request_id, status, token), *place]


def encode_response(body: ResponseBody) -> bytes:
    """The body of a response."""
    return _encoder.encode(body)


def decode_response_body(value: bytes) -> ResponseBody:
    """A response's body as it was encoded here; its tensors are views of `value`."""
    return _response_decoder.decode(value)


def decode_response(pairs: Headers, value: bytes | None) -> tuple[Response, str]:
    """A response record as the response and the token of the inbox it is meant for.

    Raises InvalidRequest when the record is no response of a known protocol version.
    """
    found: dict[str, Any] = dict(pairs)  # a value that is null has no `decode`, which says it all below
    if found.get("v") != _wire:
        _check_wire_version(found.get("v"))
    try:
        name, token, status = found["id"].decode(), found["to"].decode(), _statuses[found["status"]]
        body = _response_decoder.decode(value or b"")
    except (KeyError, AttributeError, UnicodeDecodeError, msgspec.DecodeError, RecursionError) as exc:
        msg = f"a record in the reply topic is no response: {type(exc).__name__}"
        raise InvalidRequest(msg) from exc
    response = Response(name, status, body.model, body.version, body.outputs, body.error, body.receipt, body.parameters)
    if "run" in found:
        run = (found["run"] or b"").decode("ascii", "replace")
        final = status is not Status.PARTIAL
        response = msgspec.structs.replace(response, index=body.index, final=final, run=run)
    return response, token


def encode_kept(response: Response) -> bytes:
    """A whole response, status and id included, to be kept for somebody who asks the same again."""
    return _encoder.encode(response)


def decode_kept(raw: bytes) -> Response:
    """A response that was kept; its tensors are views of `raw`. Raises TransportError when it is none."""
    try:
        return _kept_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        msg = f"a kept response cannot be read: {exc}"
        raise TransportError(msg) from exc
