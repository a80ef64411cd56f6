"""The way of a sequence's steps into the engine: those that may not run are answered here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

from contracts.clock import Clock
from contracts.messages import SequenceStep, Status
from contracts.serving_specs import SequencesSpec
from workers.ingest.delivery import Delivery
from workers.ingest.sequences import Sequences, Verdict
from workers.link import Forget

_LOST = "the state of its sequence was lost: start it again"
_REPEATED = "this step of its sequence was taken already, and there is no way back: start it again"
_FULL = "the worker keeps as many sequences as it may; try again later"
_SWEEP_SECONDS = 0.5


class Failing(Protocol):
    """Who answers errors."""

    def fail(self, delivery: Delivery, status: Status, message: str, *, retryable: bool = False) -> None:
        """Answer with an error."""


class Gate:
    """Lets steps through to one worker's engine; a model without sequences has an open one."""

    def __init__(
        self,
        spec: SequencesSpec | None,
        *,
        clock: Clock,
        answers: Failing,
        settle: Callable[[Delivery], None],
        cancelled: Container[str],
    ) -> None:
        """`settle` is told of each step that has its outcome here; `cancelled` has the names of those given up."""
        self._sequences = None if spec is None else Sequences(spec)
        self.is_shut = spec is not None
        """Whether steps have to be let through."""
        self._clock = clock
        self._answers = answers
        self._settle = settle
        self._cancelled = cancelled

    def admitted(self, deliveries: list[Delivery], in_flight: Iterable[Delivery]) -> list[Delivery]:
        """The steps of a batch that may run; the others are answered."""
        if self._sequences is None or not deliveries:
            return deliveries
        admitted = []
        for delivery, verdict in self._sequences.admit(deliveries, in_flight, self._clock.monotonic()):
            if verdict is Verdict.RUN:
                admitted.append(delivery)
                continue
            if verdict is Verdict.FULL:
                self._answers.fail(delivery, Status.OVERLOADED, _FULL, retryable=True)
            else:  # the caller of a repeated one has its response already, unless it is another caller
                text = _LOST if verdict is Verdict.LOST else _REPEATED
                self._answers.fail(delivery, Status.SEQUENCE_LOST, text)
            self._settle(delivery)
        return admitted

    def steps(self, deliveries: Sequence[Delivery]) -> tuple[SequenceStep, ...]:
        """What the engine is told about a batch's rows."""
        if self._sequences is None:
            return ()
        return tuple(delivery.sequence for delivery in deliveries if delivery.sequence is not None)

    def ran(self, deliveries: Iterable[Delivery]) -> None:
        """The engine has run a batch."""
        if self._sequences is not None:
            self._sequences.ran(deliveries, self._clock.monotonic())

    def engine_lost(self) -> None:
        """The engine is gone."""
        if self._sequences is not None:
            self._sequences.lose()

    async def sweep_loop(self, send: Callable[[Forget], None], model: int) -> None:
        """Have the engine forget what is over, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            if self._sequences is not None:
                names = self._sequences.sweep(self._clock.monotonic(), self._cancelled)
                if names:
                    send(Forget(model, names))
