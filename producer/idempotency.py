"""What repetitions mean: when two requests are the same, and what to do about a key, given how it stands. Pure.

A key's request ends for good with a result, or with an error that repeating cannot change (INVALID, POISON). Any other
error ends its round only: those who waited for that round share it, whoever comes later begins a new one under a new
id. A deadline is its submitter's alone, so one who waited and has time left goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from contracts.adapters.idempotency import Claim
from contracts.errors import InvalidRequest
from contracts.messages import ErrorDetail, Parameters, Response, Status
from contracts.names import ModelVersion
from producer.plan import Inputs

_KEY = re.compile(r"[!-~]{1,128}")
_FINAL = frozenset({Status.OK, Status.INVALID, Status.POISON})
_FIRST_DELAY_SECONDS = 0.01
_LAST_DELAY_SECONDS = 0.25  # how late a result of another process may be seen at most
_LATENESS = 0.25  # of the time waited so far
_LEAST_TTL_SECONDS = 0.001


class Submit(NamedTuple):
    """Publish the request under this id."""

    request_id: str


class Wait(NamedTuple):
    """Somebody else carries it out: look again after so long."""

    request_id: str
    seconds: float


class Answer(NamedTuple):
    """It has ended."""

    response: Response


class BeginAgain(NamedTuple):
    """The round that was waited for left nothing to share: ask for one of one's own."""


Step = Submit | Wait | Answer | BeginAgain


def check_key(key: str) -> str:
    """Return an idempotency key. Raises InvalidRequest when it cannot be one."""
    if not _KEY.fullmatch(key):
        msg = "idempotency_key must be 1 to 128 visible ASCII characters, without spaces"
        raise InvalidRequest(msg)
    return key


def canonical(inputs: Inputs, parameters: Parameters | None) -> tuple[Inputs, Parameters | None]:
    """The same inputs and parameters in the order of their names, so that equal requests have equal bytes."""
    ordered: Inputs
    if isinstance(inputs, Mapping):
        ordered = {name: inputs[name] for name in sorted(inputs)}
    else:
        ordered = sorted(inputs, key=lambda tensor: tensor.name)
    return ordered, dict(sorted(parameters.items())) if parameters else None


def digest(model: ModelVersion | str, body: bytes) -> str:
    """Identifies a request's content: 128 bits over the model and the encoded body."""
    return hashlib.blake2b(body, digest_size=16, key=hashlib.blake2b(str(model).encode()).digest()).hexdigest()


def next_step(claim: Claim, *, key: str, waited_seconds: float, left_seconds: float) -> Step:
    """What to do about a key. Raises InvalidRequest when it stands for another request."""
    if claim.standing == "CONFLICT":
        raise conflict(key, claim.request_id)
    if claim.standing == "RUN":
        return Submit(claim.request_id)
    if claim.standing == "WAIT":
        delay = min(max(_FIRST_DELAY_SECONDS, waited_seconds * _LATENESS), _LAST_DELAY_SECONDS)
        return Wait(claim.request_id, min(delay, claim.lapses_seconds + _FIRST_DELAY_SECONDS))
    if claim.response is None or is_someone_elses_deadline(claim.response, left_seconds):
        return BeginAgain()
    return Answer(claim.response)


def conflict(key: str, request_id: str) -> InvalidRequest:
    """The error of a key that was used for something else."""
    return InvalidRequest(
        f"idempotency key {key!r} is taken: request {request_id or 'under it'} has other inputs, other parameters "
        "or another model; use a new key for a new request"
    )


def is_kept(status: Status) -> bool:
    """Whether a response of that status answers its key from now on; otherwise only those who wait for it."""
    return status in _FINAL


def is_someone_elses_deadline(response: Response, left_seconds: float) -> bool:
    """Whether a shared response only says that another caller's time ran out, while there is some left here."""
    return response.status is Status.DEADLINE_EXCEEDED and left_seconds > _LEAST_TTL_SECONDS


def expired(request_id: str, model: ModelVersion, waited_seconds: float) -> Response:
    """The answer to who waited for somebody else's request until the own deadline."""
    detail = ErrorDetail(f"no response within {waited_seconds:.1f} s; answered by the client itself", retryable=True)
    return Response(request_id, Status.DEADLINE_EXCEEDED, model.model, model.version, error=detail)
