"""One receipt of a request record by this worker, on its way from the log to its response."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from contracts.adapters.kafka import Record
from contracts.codec import PRIORITIES
from contracts.messages import Parameters, Ran, ReplyAddress, RequestHeaders, SequenceStep
from contracts.names import DEFAULT_TENANT
from contracts.plans import Plan
from contracts.tensors import Tensor
from workers.draining.claim import Claim

if TYPE_CHECKING:
    from workers.ingest.split import Whole

LANES: dict[str, int] = {priority: lane for lane, priority in enumerate(PRIORITIES)}
NORMAL = LANES["normal"]


class Leg:
    """What a step of a pipeline's job brings besides its request.

    `deadline` is the job's, `carried` what travels past the model to later steps, `ran` the step before. `plan` is
    there once the answer has begun to pass in parts.
    """

    __slots__ = ("carried", "deadline", "headers", "plan", "ran")

    def __init__(self, headers: RequestHeaders, deadline: float) -> None:
        self.headers = headers
        self.deadline = deadline
        self.carried: tuple[Tensor, ...] = ()
        self.ran: Ran | None = None
        self.plan: Plan | None = None

    @property
    def is_over(self) -> bool:
        """Whether its job has ended without it, as far as this worker knows."""
        return False

    def end(self) -> bool:
        """It leaves this worker's hands without an outcome; whether its record does, too."""
        return True


class Origin(msgspec.Struct, frozen=True):
    """Where a record came from and where its response goes; all that an answer needs.

    `reply` None means that nobody waits for the response. `attempt` counts redeliveries through retry topics. `leg` is
    there for a step of a pipeline's job, whose outcome goes on to the next step.
    """

    claim: Claim
    record: Record
    request_id: str
    reply: ReplyAddress | None
    attempt: int = 1
    leg: Leg | None = None

    @property
    def root(self) -> str:
        """The id that its caller knows, and cancels."""
        hop = self.leg.headers.hop if self.leg is not None else None
        return self.request_id if hop is None else hop.job


class Place(NamedTuple):
    """Where a part stands: its number in a stream, and the name of the execution."""

    number: int
    run: str


def tenant_of(origin: Origin) -> str:
    """The tenant in whose folder a request's payloads lie; the intake has seen to it that it is a name."""
    for name, value in origin.record.headers:
        if name == "tenant" and value:
            return str(value.decode())
    return DEFAULT_TENANT


class Delivery:
    """A request that fits its model, with everything needed to run it, run it again and answer it.

    `taken`, `deadline` and `launched` are seconds on the worker's monotonic clock; `launches` counts how often it was
    given to an engine, `lost` how often that ended with the engine or the worker, `lost_alone` how often so while it
    was alone in there. `is_journaled` says that its next launch is, `is_watched` that it was taken with care,
    `is_remote` that data of its inputs is still to be read from a store. `urgency` is where it stands in its line: the
    queue's own. `stream` says that its caller takes parts. `whole` is the request of which it is part number `part`,
    None when the request was not split.
    """

    __slots__ = (
        "batch_key",
        "batched_us",
        "deadline",
        "inputs",
        "is_journaled",
        "is_remote",
        "is_watched",
        "lane",
        "launched",
        "launches",
        "lost",
        "lost_alone",
        "memory_failures",
        "origin",
        "parameters",
        "part",
        "queued_us",
        "rows",
        "sequence",
        "stream",
        "taken",
        "urgency",
        "whole",
    )

    def __init__(  # noqa: PLR0913 - a value
        self,
        origin: Origin,
        *,
        inputs: tuple[Tensor, ...],
        parameters: Parameters,
        rows: int,
        batch_key: Hashable,
        taken: float,
        deadline: float,
        queued_us: int,
        lane: int = NORMAL,
        stream: bool = False,
        sequence: SequenceStep | None = None,
        is_remote: bool = False,
    ) -> None:
        self.origin = origin
        self.inputs = inputs
        self.parameters = parameters
        self.rows = rows
        self.batch_key = batch_key
        self.taken = taken
        self.deadline = deadline
        self.queued_us = queued_us
        self.lane = lane
        self.stream = stream
        self.sequence = sequence
        self.is_remote = is_remote
        self.urgency = deadline
        self.whole: Whole | None = None
        self.part = 0
        self.launched = 0.0
        self.batched_us = 0
        self.launches = 0
        self.lost = 0
        self.lost_alone = 0
        self.memory_failures = 0
        self.is_journaled = False
        self.is_watched = False

    @property
    def order_key(self) -> bytes | None:
        """What it must not overtake others of, nor run beside them: its sequence, or else its record's key."""
        return self.origin.record.key if self.sequence is None else self.sequence.id.encode()

    @property
    def is_suspect(self) -> bool:
        """Whether it must run with nothing beside it."""
        return self.lost > 0 or self.is_watched

    @property
    def request(self) -> Delivery:
        """The request that this is, or is a part of."""
        return self if self.whole is None else self.whole.delivery
