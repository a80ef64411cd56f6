"""Which sequences this worker knows: pure. Their states lie in the engine.

A step runs only where the step before it ran: in this engine, and under this claim on the partition. Anything else is
told that the state was lost. So a new engine knows nothing, nor does the next owner of a partition, and nobody goes on
from a state that misses a step. The order of a sequence's steps is not decided here: the queue lets one through at a
time, so a batch never holds two of them.

A record that the producer wrote twice must not step twice: the last few requests of each sequence are remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Sequence
from enum import Enum, auto

from contracts.messages import SequenceStep
from contracts.serving_specs import SequencesSpec
from workers.draining.claim import Claim
from workers.ingest.delivery import Delivery

_REMEMBERED = 16


class Verdict(Enum):
    """What is to become of a step."""

    RUN = auto()
    LOST = auto()
    FULL = auto()
    REPEATED = auto()


class _Known:
    """A sequence whose state is in the engine."""

    __slots__ = ("claim", "recent", "used")

    def __init__(self, claim: Claim, now: float) -> None:
        self.claim = claim
        self.used = now
        self.recent: deque[str] = deque(maxlen=_REMEMBERED)


class Sequences:
    """The sequences of one worker."""

    def __init__(self, spec: SequencesSpec) -> None:
        self._spec = spec
        self._known: dict[str, _Known] = {}
        self._over: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def admit(
        self, deliveries: Sequence[Delivery], in_flight: Iterable[Delivery], now: float
    ) -> list[tuple[Delivery, Verdict]]:
        """Judge steps that are to be launched, while others are in the engine already."""
        beginning = {step.id for other in in_flight if (step := _step(other)).start and step.id not in self._known}
        judged = []
        for delivery in deliveries:
            verdict = self._judge(delivery, len(self._known) + len(beginning), now)
            step = _step(delivery)
            if verdict is Verdict.RUN and step.start and step.id not in self._known:
                beginning.add(step.id)
            judged.append((delivery, verdict))
        return judged

    def _judge(self, delivery: Delivery, count: int, now: float) -> Verdict:
        step = _step(delivery)
        known = self._known.get(step.id)
        if known is not None and known.claim is not delivery.origin.claim:
            self._end(step.id)
            known, count = None, count - 1
        if known is not None:
            if delivery.origin.request_id in known.recent:
                return Verdict.REPEATED
            known.used = now
            return Verdict.RUN
        if not step.start:
            return Verdict.LOST
        if count >= self._spec.max:
            return Verdict.FULL
        self._over.discard(step.id)
        return Verdict.RUN

    def ran(self, deliveries: Iterable[Delivery], now: float) -> None:
        """The engine has stepped."""
        for delivery in deliveries:
            step = _step(delivery)
            if step.end:
                self._known.pop(step.id, None)
                continue
            known = self._known.get(step.id)
            if known is None and step.start:
                known = self._known[step.id] = _Known(delivery.origin.claim, now)
            if known is not None:
                known.used = now
                known.recent.append(delivery.origin.request_id)

    def lose(self) -> None:
        """The engine is gone, and with it every state."""
        self._known.clear()
        self._over.clear()

    def sweep(self, now: float, cancelled: Container[str]) -> tuple[str, ...]:
        """Let go of what was idle for too long, given up, or is another worker's now; what the engine is to forget."""
        for name, known in list(self._known.items()):
            if now - known.used > self._spec.idle_seconds or known.claim.is_over or name in cancelled:
                self._end(name)
        over, self._over = self._over, set()
        return tuple(over)

    def _end(self, name: str) -> None:
        del self._known[name]
        self._over.add(name)


def _step(delivery: Delivery) -> SequenceStep:
    assert delivery.sequence is not None  # noqa: S101 - the validator has seen to it
    return delivery.sequence
