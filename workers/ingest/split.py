"""Requests with more rows than a batch holds: split into parts, answered as one.

Each part is a delivery of its own with a share of the rows; all have the request's origin, key and deadline. The first
part that fails, whatever the reason, fails the request, and what becomes of the others is forgotten; when the last part
has its result the outputs are put together in the order of the rows. `Answers` stands between the batcher and the
responder and lets requests that were not split pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from contracts.messages import Receipt, Status
from contracts.tensors import BYTES, Tensor, element_offsets
from workers.ingest.delivery import Delivery, Place


class Whole:
    """A request that was split, and the results of its parts so far."""

    __slots__ = ("_missing", "_results", "delivery", "is_over")

    def __init__(self, delivery: Delivery, parts: int) -> None:
        self.delivery = delivery
        self.is_over = False
        """Whether the request has its outcome."""
        self._results: list[tuple[Tensor, ...]] = [()] * parts
        self._missing = parts

    def add(self, part: int, outputs: tuple[Tensor, ...]) -> bool:
        """Keep a part's outputs, copied out of their slot; True when it was the last that was missing."""
        if self.is_over:
            return False
        self._results[part] = tuple(
            Tensor(output.name, output.datatype, output.shape, memoryview(bytes(output.data))) for output in outputs
        )
        self._missing -= 1
        return self._missing == 0

    def first_row(self, part: Delivery) -> int:
        """Where in the request a part's rows begin: all parts but the last are of one size."""
        is_last = part.part == len(self._results) - 1
        return self.delivery.rows - part.rows if is_last else part.part * part.rows

    def end(self) -> bool:
        """Settle the request; False when it was settled before."""
        was_over, self.is_over = self.is_over, True
        return not was_over

    def outputs(self) -> tuple[Tensor, ...] | None:
        """The outputs of all rows; None when the parts' shapes differ in more than rows."""
        joined = []
        for tensors in zip(*self._results, strict=True):
            first = tensors[0]
            if any(tensor.shape[1:] != first.shape[1:] for tensor in tensors):
                return None
            shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
            data = memoryview(b"".join(tensor.data for tensor in tensors))
            joined.append(Tensor(first.name, first.datatype, shape, data))
        return tuple(joined)


def split(delivery: Delivery, most: int) -> list[Delivery]:
    """A delivery as parts of at most `most` rows; itself when it is no larger."""
    if delivery.rows <= most:
        return [delivery]
    counts = [min(most, delivery.rows - start) for start in range(0, delivery.rows, most)]
    shares = [_shares(tensor, counts) for tensor in delivery.inputs]
    whole = Whole(delivery, len(counts))
    parts = []
    for number, count in enumerate(counts):
        part = Delivery(
            delivery.origin,
            inputs=tuple(share[number] for share in shares),
            parameters=delivery.parameters,
            rows=count,
            batch_key=delivery.batch_key,
            taken=delivery.taken,
            deadline=delivery.deadline,
            queued_us=delivery.queued_us,
            lane=delivery.lane,
        )
        part.whole, part.part = whole, number
        parts.append(part)
    return parts


def _shares(tensor: Tensor, counts: list[int]) -> list[Tensor]:
    rows = tensor.shape[0]
    if tensor.datatype == BYTES:
        per_row = 1
        for size in tensor.shape[1:]:
            per_row *= size
        bounds = element_offsets(tensor.data, [count * per_row for count in counts])
    else:
        row_bytes, bounds = len(tensor.data) // rows, [0]
        for count in counts:
            bounds.append(bounds[-1] + count * row_bytes)
    return [
        Tensor(tensor.name, tensor.datatype, (count, *tensor.shape[1:]), tensor.data[start:end])
        for count, start, end in zip(counts, bounds, bounds[1:], strict=False)
    ]


class Answering(Protocol):
    """Who is told the outcomes of requests: the responder, or what stands in for it."""

    @property
    def device(self) -> str:
        """Where the engine says it runs."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether streams may go on."""
        ...

    @property
    def way_back_seconds(self) -> float:
        """How long an answer travels, about."""
        ...

    def batch_answered(self) -> None:
        """All requests of a batch were answered."""

    def succeed(
        self, delivery: Delivery, outputs: tuple[Tensor, ...], receipt: Receipt, place: Place | None = None
    ) -> None:
        """A request has its outputs, which may be views; `place` says which part of a stream they are."""

    def when_known(self, delivery: Delivery, then: Callable[[bool], None]) -> None:
        """Call back with whether parts of the answer to a request that asks for them can be sent: at once if known."""

    def partial(self, delivery: Delivery, outputs: tuple[Tensor, ...], place: Place) -> bool:
        """A stream has a part; False when the request has been answered instead."""
        ...

    def fail(self, delivery: Delivery, status: Status, message: str, *, retryable: bool = False) -> None:
        """A request has none."""

    def retry(self, delivery: Delivery, reason: str, message: str) -> None:
        """A request failed for a reason that passes."""

    def poison(self, delivery: Delivery, message: str) -> None:
        """A request cannot be run."""


class Answers:
    """Answers a split request once."""

    def __init__(self, responder: Answering) -> None:
        self._responder = responder
        self.batch_answered = responder.batch_answered

    @property
    def device(self) -> str:
        """Where the engine says it runs."""
        return self._responder.device

    @property
    def way_back_seconds(self) -> float:
        """How long an answer travels, about."""
        return self._responder.way_back_seconds

    def succeed(self, delivery: Delivery, outputs: tuple[Tensor, ...], receipt: Receipt) -> None:
        """Answer OK, for a part when all others have their results too."""
        whole = delivery.whole
        if whole is None:
            self._responder.succeed(delivery, outputs, receipt)
        elif whole.add(delivery.part, outputs):
            whole.end()
            joined = whole.outputs()
            if joined is None:
                text = "the parts of this request came back in different shapes; send fewer rows"
                self._responder.fail(whole.delivery, Status.INTERNAL, text)
            else:
                self._responder.succeed(whole.delivery, joined, receipt)

    def fail(self, delivery: Delivery, status: Status, message: str, *, retryable: bool = False) -> None:
        """Answer with an error, for a part if the request has no outcome yet."""
        if delivery.whole is None or delivery.whole.end():
            self._responder.fail(delivery.request, status, message, retryable=retryable)

    def retry(self, delivery: Delivery, reason: str, message: str) -> None:
        """Put the request off, for a part if the request has no outcome yet."""
        if delivery.whole is None or delivery.whole.end():
            self._responder.retry(delivery.request, reason, message)

    def poison(self, delivery: Delivery, message: str) -> None:
        """Put the request aside and answer POISON, for a part if the request has no outcome yet."""
        if delivery.whole is None or delivery.whole.end():
            self._responder.poison(delivery.request, message)


def forget(delivery: Delivery) -> None:
    """A delivery leaves this worker's hands without an outcome: its record is dropped once, however many its parts."""
    leg = delivery.origin.leg
    if (delivery.whole is None or delivery.whole.end()) and (leg is None or leg.end()):
        delivery.origin.claim.dropped()


def is_settled(delivery: Delivery) -> bool:
    """Whether a delivery is a part of a request, or a job, that has its outcome: running it would be in vain."""
    leg = delivery.origin.leg
    return (delivery.whole is not None and delivery.whole.is_over) or (leg is not None and leg.is_over)
