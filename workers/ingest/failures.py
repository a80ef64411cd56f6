"""What becomes of the requests of a batch that failed: halved, run alone, run in parts, put off, or answered.

Content that the model refuses is its sender's fault: the request ends as INVALID, is not put off and not put aside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from contracts.messages import Status
from contracts.specs import ModelSpec
from workers.ingest import isolate, metrics
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery
from workers.ingest.flight import Flight
from workers.ingest.policy import Policy
from workers.ingest.split import Answers, split
from workers.ingest.suspects import Suspects
from workers.link import Failed, InvalidRow

log = logging.getLogger(__name__)

_MOST_WORDS = 1000  # characters about the rows of a request; steps of jobs carry them on


class Failures:
    """Carries out what `isolate` decides, for one model."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        queue: BatchQueue,
        policy: Policy,
        answers: Answers,
        suspects: Suspects,
        settle: Callable[[Delivery], None],
    ) -> None:
        """`settle` is told of each request that has its outcome."""
        self._spec = spec
        self._queue = queue
        self._policy = policy
        self._answers = answers
        self._suspects = suspects
        self._settle = settle

    def failed(self, flight: Flight, failed: Failed) -> None:
        """Find the request that is to blame, or say that the model is; one of the batch's at least has no outcome."""
        deliveries = flight.open
        if failed.rows:
            self._refused(flight, failed)
        elif len(deliveries) > 1:
            self._queue.put_groups(isolate.halves(deliveries))
        elif len(flight.deliveries) > 1:
            self._queue.put_groups([deliveries])  # the others' streams have ended, but it may have been one of them
        else:
            self._failed_alone(deliveries[0], failed)

    def _failed_alone(self, delivery: Delivery, failed: Failed) -> None:
        if failed.kind == "memory":
            self._had_no_memory(delivery, failed)
            return
        if failed.kind == "error":
            self._answers.poison(delivery, f"the model failed on this request alone: {failed.message}")
        else:
            self._answers.fail(
                delivery, Status.INVALID if failed.kind == "invalid" else Status.INTERNAL, failed.message
            )
        self._settle(delivery)

    def _had_no_memory(self, delivery: Delivery, failed: Failed) -> None:
        if self._can_split(delivery):
            self._queue.put_groups(isolate.singles(split(delivery, self._policy.largest)))
        elif delivery.memory_failures == 0:
            delivery.memory_failures = 1  # alone it may fit, now that what ran beside it is done
            self._queue.put_groups([[delivery]])
        else:
            self._answers.retry(delivery, "memory", failed.message)
            self._settle(delivery)

    def _refused(self, flight: Flight, failed: Failed) -> None:
        """The model names rows: their requests end, the others run again."""
        deliveries, owners = flight.deliveries, isolate.owners([d.rows for d in flight.deliveries], failed.rows)
        if not owners:  # as it is about rows that only fill the batch, it would be so again
            text = f"the model refuses what its batches are filled up with: {failed.rows[0].why}"
            self.failed(flight, Failed(failed.slot, failed.sequence, "output", text))
            return
        guilty = {id(deliveries[number]): rows for number, rows in owners.items()}
        living = flight.open
        self._queue.put_groups([[delivery for delivery in living if id(delivery) not in guilty]])
        for delivery in living:
            if id(delivery) in guilty:
                self._answers.fail(delivery, Status.INVALID, _told(delivery, guilty[id(delivery)]))
                self._settle(delivery)

    def too_large(self, deliveries: list[Delivery], slot_bytes: int) -> None:
        """A batch that does not fit its slot is halved; a single request that does not can never run here."""
        if len(deliveries) > 1:
            self._queue.put_groups(isolate.halves(deliveries))
            return
        text = f"the request's tensors exceed a slot of {slot_bytes} bytes; raise slot_mib in model.yaml"
        self._answers.fail(deliveries[0], Status.INVALID, text)
        self._settle(deliveries[0])

    def out_of_memory(self, rows: int) -> None:
        """Cut no batch as large as one that the device had no memory for."""
        model = str(self._spec.key)
        metrics.OUT_OF_MEMORY.labels(model).inc()
        if self._policy.out_of_memory(rows):
            least = self._policy.largest
            metrics.MEMORY_ROWS.labels(model).set(least)
            self._suspects.journal.ceiling(self._spec.key, least)
            log.warning("%s: no memory for a batch of %d rows; from now on at most %d", model, rows, least)

    def _can_split(self, delivery: Delivery) -> bool:
        """Whether a request that is too large for the device may be run in parts: not one whose rows are a sequence."""
        too_large = delivery.rows > self._policy.largest
        return too_large and delivery.whole is None and not self._spec.batching.padding.offsets

    def try_alone(self, deliveries: Sequence[Delivery]) -> None:
        """Queue suspects, each by itself, and put aside those that had their chances."""
        guilty = [d for d in deliveries if isolate.is_poison(d.lost, d.lost_alone)]
        self._queue.put_groups(isolate.singles([d for d in deliveries if d not in guilty]))
        for delivery in guilty:
            text = (
                f"the engine ended {delivery.lost} times while it ran this request, {delivery.lost_alone} times alone"
            )
            delivery.request.lost = delivery.lost
            self._answers.poison(delivery, text)
            self._queue.settled(delivery)


def _told(delivery: Delivery, rows: Sequence[InvalidRow]) -> str:
    """What the sender of a request is told of its rows, counted as it has sent them."""
    whole = delivery.whole
    if whole is None and delivery.rows == 1:
        return rows[0].why
    first = 0 if whole is None else whole.first_row(delivery)
    return "; ".join(f"row {first + invalid.row}: {invalid.why}" for invalid in rows)[:_MOST_WORDS]
