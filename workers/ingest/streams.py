"""Streams: the parts that a batch yields, each sent to its request's caller before the engine goes on.

The engine waits after every part, so a slot is never overwritten unread, a caller that has gone is noticed before the
next step, and an engine that is faster than the log is held back by the room that the publisher has. Whoever asked
without taking parts gets all of them joined, as one response.

Whether a step of a pipeline's job passes its parts on is said by the job's plan. Where that is still on its way the
engine waits with the first part, as it does when there is no room, but not for long: others want it, too. If the plan
has not come by then the parts are joined, and the whole goes on or ends when it is known what follows.

A part is no outcome: after a failure the request runs again from its beginning, under another name, and its caller puts
together what fits. Only the final response settles the record.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Container, Sequence
from functools import partial

from contracts.clock import Clock
from contracts.messages import Status
from contracts.tensors import Tensor
from workers.ingest.delivery import Delivery, Place
from workers.ingest.flight import Flight, Line, Stream
from workers.ingest.layout import Output
from workers.ingest.responder import MAX_RESPONSE_BYTES
from workers.ingest.split import Answering, forget, is_settled
from workers.link import Continue, Done, Part, Region
from workers.slots import SlotFile

PLAN_SECONDS = 1.0
"""How long the engine waits with a part for a plan, which comes in milliseconds unless it was lost."""
_EXPIRED = "the time to live ended before the stream did"
_WHOLE_TOO_LARGE = f"the parts together are above the limit of {MAX_RESPONSE_BYTES} bytes; ask for them as a stream"
_UNLIKE = "the parts have different shapes and cannot be joined; ask for them as a stream"


class _Held:
    """A part with which the engine waits; `is_read` when its slot is not needed any more."""

    __slots__ = ("flight", "is_read", "part", "stream")

    def __init__(self, flight: Flight, stream: Stream, part: Part) -> None:
        self.flight, self.stream, self.part = flight, stream, part
        self.is_read = False


class Streams:
    """The streams that one worker's engine runs."""

    def __init__(
        self,
        *,
        slots: SlotFile,
        clock: Clock,
        responder: Answering,
        send: Callable[[Continue], None],
        is_trusted: Callable[[], bool],
        cancelled: Container[str],
        settle: Callable[[Delivery], None],
        worker: str,
    ) -> None:
        """`settle` is told of each request that has its outcome; the rest is as in the batcher."""
        self._slots = slots
        self._clock = clock
        self._responder = responder
        self._send = send
        self._is_trusted = is_trusted
        self._cancelled = cancelled
        self._settle = settle
        self._worker = worker
        self._numbers = itertools.count(1)
        self._held: list[_Held] = []

    def begin(self, deliveries: list[Delivery], rows: int) -> Stream:
        """A batch of a streaming model is launched."""
        stream = Stream(deliveries, f"{self._worker}.{next(self._numbers)}", rows)
        for line in stream.lines:
            if line.takes_parts is None:
                self._responder.when_known(line.delivery, partial(self._known, line))
        return stream

    def _known(self, line: Line, takes_parts: bool) -> None:  # noqa: FBT001 - a callback
        if line.takes_parts is None:
            line.takes_parts = takes_parts
            self.resume()

    def _join_all(self, stream: Stream) -> None:
        """The engine has waited long enough for plans."""
        for line in stream.lines:
            self._known(line, takes_parts=False)

    def part(self, flight: Flight, part: Part) -> None:
        """Hand out a part, and have the engine go on when there is room."""
        stream = flight.stream
        assert stream is not None  # noqa: S101 - the batcher looked
        stream.is_held = True
        self._held.append(_Held(flight, stream, part))
        if not stream.is_known:
            asyncio.get_running_loop().call_later(PLAN_SECONDS, self._join_all, stream)
        self.resume()

    def resume(self) -> None:
        """Hand out what is held as far as it is clear to whom, and let the engine go on if there is room."""
        held, self._held = self._held, []
        for one in held:
            if not one.is_read and one.stream.is_known:
                one.is_read = True
                self._read(one.flight, one.stream, one.part)
            if one.is_read and self._responder.has_room:
                self._go_on(one.stream, one.part)
            else:
                self._held.append(one)

    def _read(self, flight: Flight, stream: Stream, part: Part) -> None:
        lines = self._chosen(stream, part.rows)
        for line, outputs in self._cut(part.outputs, part.slot, lines):
            if part.final:
                self._end(flight, stream, line, outputs)
            else:
                self._hand_out(stream, line, outputs)

    def _go_on(self, stream: Stream, part: Part) -> None:
        stream.is_held = False
        now = self._clock.monotonic()
        for line in stream.lines:
            if line.is_open:
                self._let_go(line, now)
        gone = stream.gone
        self._send(Continue(part.slot, part.sequence, gone, stop=len(gone) == stream.rows))

    def finish(self, flight: Flight, done: Done) -> None:
        """A stream has ended: whatever is open has its final part."""
        stream = flight.stream
        assert stream is not None  # noqa: S101 - the batcher looked
        ended = list(self._cut(done.outputs, done.slot, self._chosen(stream, None)))
        for line, outputs in ended:
            self._end(flight, stream, line, outputs)

    def engine_lost(self) -> None:
        """Nothing waits to go on any more."""
        self._held.clear()

    # --- one request --------------------------------------------------------------------------------------------------

    @staticmethod
    def _chosen(stream: Stream, rows: Sequence[int] | None) -> list[Line | None]:
        """The lines of the rows that outputs are for; None for a row that was only filled in, or has ended."""
        numbers = range(len(stream.lines)) if rows is None else rows
        lines = [stream.lines[number] if number < len(stream.lines) else None for number in numbers]
        return [line if line is not None and line.is_open else None for line in lines]

    def _cut(
        self, regions: Sequence[Region], slot: int, lines: Sequence[Line | None]
    ) -> list[tuple[Line, tuple[Tensor, ...]]]:
        """Each line with its row of the outputs, as views."""
        view, counts = self._slots.output(slot), [1] * len(lines)
        outputs = [Output(region, view, counts) for region in regions]
        return [
            (line, tuple(output.part(at, 1) for output in outputs)) for at, line in enumerate(lines) if line is not None
        ]

    def _hand_out(self, stream: Stream, line: Line, outputs: tuple[Tensor, ...]) -> None:
        if not line.takes_parts:
            if not line.keep(outputs, MAX_RESPONSE_BYTES):
                self._fail(line, Status.INTERNAL, _WHOLE_TOO_LARGE)
        elif self._responder.partial(line.delivery, outputs, Place(line.index, stream.name)):
            line.index += 1
        else:
            self._close(line)

    def _end(self, flight: Flight, stream: Stream, line: Line, outputs: tuple[Tensor, ...]) -> None:
        delivery = line.delivery
        receipt = flight.receipt(delivery, self._clock.monotonic(), self._worker, self._responder.device)
        if line.takes_parts:
            self._responder.succeed(delivery, outputs, receipt, Place(line.index, stream.name))
            self._close(line)
            return
        if outputs:
            line.keep(outputs, MAX_RESPONSE_BYTES)  # the responder sees to the size
        whole = line.joined()
        if whole is None:
            self._fail(line, Status.INTERNAL, _UNLIKE)
        else:
            self._responder.succeed(delivery, whole, receipt)
            self._close(line)

    def _let_go(self, line: Line, now: float) -> None:
        """Stop what nobody waits for: expired, cancelled, or another worker's by now, who begins anew."""
        delivery = line.delivery
        if is_settled(delivery):  # a job that has ended without this step
            self._close(line)
        elif delivery.origin.claim.is_over:
            forget(delivery)
            self._close(line)
        elif not self._is_trusted():
            return
        elif delivery.deadline <= now:
            self._fail(line, Status.DEADLINE_EXCEEDED, _EXPIRED, retryable=True)
        elif delivery.origin.root in self._cancelled:
            self._fail(line, Status.CANCELLED, "cancelled by its caller while it ran")

    def _fail(self, line: Line, status: Status, message: str, *, retryable: bool = False) -> None:
        self._responder.fail(line.delivery, status, message, retryable=retryable)
        self._close(line)

    def _close(self, line: Line) -> None:
        line.is_open = False
        self._settle(line.delivery)
