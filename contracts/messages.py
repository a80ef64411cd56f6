"""What travels: requests, responses, receipts and where a response goes.

A request is accepted once Kafka acknowledged it, and ends in exactly one terminal response. Control data travels in
record headers, so that routing, forwarding and dead letters never decode a body; `codec` has the layout.

None of these can be part of a reference cycle, and a busy process holds thousands: `gc=False` spares the collector the
walk over them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from contracts import errors
from contracts.tensors import Tensor

Scalar = str | int | float | bool | None
Parameters = dict[str, Scalar]

WIRE_MAJOR: Final = 1
WIRE_VERSION: Final = "1.0"
DEFAULT_TTL_MS: Final = 30_000
MAX_TTL_MS: Final = 6 * 3_600_000  # retention of request topics is at least four times this


class Status(StrEnum):
    """How a request ended; PARTIAL says that it has not: more parts of its stream follow."""

    OK = "OK"
    PARTIAL = "PARTIAL"
    INVALID = "INVALID"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    OVERLOADED = "OVERLOADED"
    POISON = "POISON"
    SEQUENCE_LOST = "SEQUENCE_LOST"
    INTERNAL = "INTERNAL"


_error_classes: dict[Status, type[errors.RequestError]] = {
    Status.INVALID: errors.InvalidRequest,
    Status.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Status.CANCELLED: errors.Cancelled,
    Status.OVERLOADED: errors.Overloaded,
    Status.POISON: errors.PoisonRequest,
    Status.SEQUENCE_LOST: errors.SequenceLost,
    Status.INTERNAL: errors.InternalError,
}
_statuses = {error: status for status, error in _error_classes.items()}


def status_of(error: errors.RequestError) -> Status:
    """The terminal status that an error stands for."""
    return _statuses.get(type(error), Status.INTERNAL)


class ReplyAddress(msgspec.Struct, frozen=True, gc=False):
    """Where the response goes: a partition of a reply topic and the token of the inbox that asked."""

    topic: str
    partition: int
    token: str

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.token}"


class Hop(msgspec.Struct, frozen=True, gc=False):
    """Where in a pipeline's job a record stands.

    `job`: the id that the caller gave. `plan`: digest of the compiled plan. `pipeline`: `name@version`. `step`: the
    node that the record is for, empty when it asks for the whole pipeline. `branch`: row numbers of the maps that it is
    inside of. `left_ms`: what is left of the job's time to live where this step has less; None when it is the same.
    """

    job: str
    plan: str
    pipeline: str
    step: str = ""
    branch: tuple[int, ...] = ()
    left_ms: int | None = None


class SequenceStep(msgspec.Struct, frozen=True, gc=False):
    """Which sequence a request is a step of, and whether it is the first or the last one."""

    id: str
    start: bool = False
    end: bool = False


class RequestHeaders(msgspec.Struct, frozen=True, gc=False):
    """A request's control data. `version` None leaves the version to the topic or the route table."""

    id: str
    reply: ReplyAddress | None
    ttl_ms: int = DEFAULT_TTL_MS
    model: str | None = None
    version: int | None = None
    attempt: int = 1
    priority: str = "normal"
    tenant: str = ""
    traceparent: str = ""
    hop: Hop | None = None
    stream: bool = False
    """Whether the caller takes the parts of a streaming model's answer as they come; else they are joined to one."""
    sequence: SequenceStep | None = None


class ErrorDetail(msgspec.Struct, frozen=True, gc=False):
    """Why a request has no result, in words for the caller; never quotes the input's values."""

    message: str
    retryable: bool = False


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Where a response's time went, in microseconds, and who answered.

    `queued_us`: from the log's append to the worker taking it. `batched_us`: waiting for its batch. `computed_us`: from
    the batch's launch to its result. `returned_us` and `total_us` are the client's: the rest, and the whole as the
    caller saw it. `batch_rows`: rows in the batch; `cut`: why the batch was cut.

    That of a pipeline's job has the first three as sums over the way to its answer, the rest of its last step.
    """

    worker: str = ""
    device: str = ""
    attempt: int = 1
    batch_rows: int = 0
    cut: str = ""
    queued_us: int = 0
    batched_us: int = 0
    computed_us: int = 0
    returned_us: int = 0
    total_us: int = 0


class Spent(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Where the time of several steps went, one after the other, in microseconds; as in a receipt."""

    queued_us: int = 0
    batched_us: int = 0
    computed_us: int = 0


class Ran(msgspec.Struct, frozen=True, gc=False):
    """The step of a job that ended with this record, and where its time went.

    `before`: where that of the steps went which led to this one. Where branches met, it is that of the branch which
    came last: the one that was waited for.
    """

    step: str
    receipt: Receipt
    branch: tuple[int, ...] = ()
    before: Spent = Spent()

    @property
    def spent(self) -> Spent:
        """Where the time of the whole way so far went."""
        own, before = self.receipt, self.before
        return Spent(
            before.queued_us + own.queued_us,
            before.batched_us + own.batched_us,
            before.computed_us + own.computed_us,
        )

    @property
    def whole(self) -> Receipt:
        """The receipt with the times of the whole way so far."""
        queued, batched, computed = msgspec.structs.astuple(self.spent)
        return msgspec.structs.replace(self.receipt, queued_us=queued, batched_us=batched, computed_us=computed)


def ran_after(previous: Ran | None, step: str, receipt: Receipt, branch: tuple[int, ...]) -> Ran:
    """A step that has ended, and the way to it: `previous` is the one that its request came from."""
    return Ran(step, receipt, branch, Spent() if previous is None else previous.spent)


class RequestBody(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What the model is asked: named tensors and scalar parameters.

    The rest is a pipeline's, and the model never sees it. `carried`: values that later steps need, named
    `<step>.<tensor>`. `ran`: which step came before.
    """

    inputs: tuple[Tensor, ...]
    parameters: Parameters = {}
    carried: tuple[Tensor, ...] = ()
    ran: Ran | None = None


class ResponseBody(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A response's content: outputs, or an error. `ran`: of a job's end, the step that it came of."""

    model: str
    version: int
    outputs: tuple[Tensor, ...] = ()
    error: ErrorDetail | None = None
    receipt: Receipt = Receipt()
    parameters: Parameters = {}
    index: int = 0
    final: bool = True
    ran: Ran | None = None


class Response(msgspec.Struct, frozen=True, gc=False):
    """A response as its caller sees it: the terminal one, or a part of a stream before that.

    `index` counts the parts of a stream from 0, `final` says that none follows, `run` names the execution.
    """

    id: str
    status: Status
    model: str
    version: int
    outputs: tuple[Tensor, ...] = ()
    error: ErrorDetail | None = None
    receipt: Receipt = Receipt()
    parameters: Parameters = {}
    cached: bool = False
    """The client's own mark, not on the wire: the model did not run for this call; id and receipt are of the run."""
    index: int = 0
    final: bool = True
    run: str = ""

    def __getitem__(self, name: str) -> Tensor:
        """The output tensor of that name; KeyError names those there are."""
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        msg = f"no output {name!r} in the response; it has {[tensor.name for tensor in self.outputs]}"
        raise KeyError(msg)

    def raise_for_status(self) -> Response:
        """Return the response if its status is OK or PARTIAL, else raise the RequestError that it stands for."""
        if self.status is Status.OK or self.status is Status.PARTIAL:
            return self
        detail = self.error.message if self.error else self.status.value
        raise _error_classes[self.status](f"{self.model}@{self.version} request {self.id}: {detail}")
