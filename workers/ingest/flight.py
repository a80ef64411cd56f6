"""A batch that the engine has, and how far its answer has come when that is a stream."""

from __future__ import annotations

import msgspec

from contracts.messages import Receipt
from contracts.tensors import Tensor
from workers.ingest.delivery import Delivery


class Line:
    """One request of a stream: how many parts it has had, and these parts if its caller takes only the whole.

    `takes_parts` is None while nobody knows.
    """

    __slots__ = ("_joined", "_size", "delivery", "index", "is_open", "takes_parts")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.index = 0
        self.is_open = True
        self.takes_parts: bool | None = None if delivery.stream else False
        self._joined: list[tuple[Tensor, ...]] = []
        self._size = 0

    def keep(self, outputs: tuple[Tensor, ...], most: int) -> bool:
        """Keep a part, copied out of its slot; False when the whole has become larger than `most` bytes."""
        self._joined.append(
            tuple(Tensor(o.name, o.datatype, o.shape, memoryview(bytes(o.data))) for o in outputs),
        )
        self._size += sum(len(output.data) for output in outputs)
        return self._size <= most

    def joined(self) -> tuple[Tensor, ...] | None:
        """All parts as one, one below the other; None when their shapes differ in more than rows."""
        columns = [list(column) for column in zip(*self._joined, strict=True)]
        if any(tensor.shape[1:] != column[0].shape[1:] for column in columns for tensor in column):
            return None
        return tuple(
            Tensor(
                column[0].name,
                column[0].datatype,
                (sum(tensor.shape[0] for tensor in column), *column[0].shape[1:]),
                memoryview(b"".join(tensor.data for tensor in column)),
            )
            for column in columns
        )


class Stream:
    """The answer of a batch as it comes. `rows` counts those that were added to fill the batch, too.

    `name` tells this run of the requests from every other one. The stream `is_held` while there is no room for more.
    """

    __slots__ = ("is_held", "lines", "name", "rows")

    def __init__(self, deliveries: list[Delivery], name: str, rows: int) -> None:
        self.lines = [Line(delivery) for delivery in deliveries]
        self.name = name
        self.rows = rows
        self.is_held = False

    @property
    def open(self) -> list[Delivery]:
        """The requests that have no outcome yet."""
        return [line.delivery for line in self.lines if line.is_open]

    @property
    def is_known(self) -> bool:
        """Whether it is clear of each request what becomes of its parts."""
        return all(line.takes_parts is not None for line in self.lines if line.is_open)

    @property
    def gone(self) -> tuple[int, ...]:
        """The rows that nobody waits for."""
        closed = [number for number, line in enumerate(self.lines) if not line.is_open]
        return (*closed, *range(len(self.lines), self.rows))


class Flight(msgspec.Struct, frozen=True):
    """Its requests, rows, why it was cut, and how far it has come if it is a stream."""

    deliveries: list[Delivery]
    rows: int
    cut: str
    stream: Stream | None = None

    @property
    def is_alone(self) -> bool:
        """Whether nothing may run beside it."""
        return self.deliveries[0].is_suspect

    @property
    def open(self) -> list[Delivery]:
        """The requests that have no outcome yet."""
        return self.deliveries if self.stream is None else self.stream.open

    @property
    def is_held(self) -> bool:
        """Whether the engine waits for us with it."""
        return self.stream is not None and self.stream.is_held

    def late_rows(self, arrives: float) -> int:
        """Rows of the requests whose deadline is before that."""
        late = 0
        for delivery in self.deliveries:
            if delivery.deadline < arrives:
                late += delivery.rows
        return late

    def receipt(self, delivery: Delivery, now: float, worker: str, device: str) -> Receipt:
        """What one of its requests is told about where its time went."""
        return Receipt(
            worker=worker,
            device=device,
            attempt=delivery.origin.attempt,
            batch_rows=self.rows,
            cut=self.cut,
            queued_us=delivery.queued_us,
            batched_us=delivery.batched_us,
            computed_us=int((now - delivery.launched) * 1e6),
        )
