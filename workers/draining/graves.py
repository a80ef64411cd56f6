"""Dead letters: what a worker cannot answer, kept with the reason before its record counts as answered.

A dead-letter topic that does not exist must not stop the work: the loss is counted, and things go on.
"""

from __future__ import annotations

from collections.abc import Callable

from contracts.adapters.kafka import Record
from contracts.clock import Clock
from contracts.dead_letters import Reason, Undertaker, dead_headers, without_body
from contracts.emissions import Job, Outbound
from workers.draining import metrics
from workers.draining.publisher import Publisher

Then = Callable[[object], None]
Pairs = list[tuple[str, bytes | None]]


class Graves:
    """Publishes to the dead-letter topic of one model or pipeline."""

    def __init__(self, publisher: Publisher, topic: str, undertaker: Undertaker, clock: Clock) -> None:
        """`undertaker` is what the letters say about this worker."""
        self._publisher = publisher
        self._topic = topic
        self._undertaker = undertaker
        self._clock = clock

    def bury(
        self, record: Record, request_id: str, reason: Reason, message: str, then: Then, *, attempts: int = 0
    ) -> None:
        """Keep a record as it came; `then` is called when that is acknowledged."""
        headers = dead_headers(
            record.headers,
            self._undertaker,
            reason=reason,
            message=message,
            source=f"{record.topic}/{record.partition}/{record.offset}",
            time_ms=self._clock.unix_ms(),
            attempts=attempts,
        )
        self._publish(record.value, headers, request_id, reason, then)

    def keep_answer(self, job: Job, answer: Outbound, source: str, message: str, then: Then) -> None:
        """Keep the answer of a job that has nowhere to go. It has no record of its own: many parts have led to it."""
        own = [pair for pair in answer.headers if pair[0] != "to"]
        own += [("re", str(job.reply).encode())] if job.reply is not None else []
        headers = dead_headers(
            own,
            self._undertaker,
            reason="unroutable",
            message=message,
            source=source,
            time_ms=self._clock.unix_ms(),
        )
        self._publish(answer.value, headers, job.id, "unroutable", then)

    def _publish(self, value: bytes | None, headers: Pairs, request_id: str, reason: Reason, then: Then) -> None:
        metrics.DEAD_LETTERS.labels(reason).inc()
        key = request_id.encode()

        def lost(_: object) -> None:
            metrics.DEAD_LETTERS_LOST.inc()
            then(None)

        def cut(_: object) -> None:  # with these headers the body may be above what the broker takes
            small = without_body(headers, len(value or b""))
            self._publisher.publish(self._topic, 0, (None, small, key), (then, None), (lost, None))

        self._publisher.publish(self._topic, 0, (value, headers, key), (then, None), (cut, None))
