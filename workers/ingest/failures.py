"""What becomes of the requests of a batch that failed: halved, run alone, run in parts, put off, or answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from contracts.messages import Status
from contracts.specs import ModelSpec
from workers.ingest import isolate, metrics
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery
from workers.ingest.policy import Policy
from workers.ingest.split import Answers, split
from workers.ingest.suspects import Suspects
from workers.link import Failed

log = logging.getLogger(__name__)


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

    def failed(self, deliveries: list[Delivery], failed: Failed) -> None:
        """Find the request that is to blame, or say that the model is."""
        if len(deliveries) > 1:
            self._queue.put_groups(isolate.halves(deliveries))
        elif failed.kind == "error":
            self._answers.poison(deliveries[0], f"the model failed on this request alone: {failed.message}")
            self._settle(deliveries[0])
        elif failed.kind == "output":
            self._answers.fail(deliveries[0], Status.INTERNAL, failed.message)
            self._settle(deliveries[0])
        elif self._can_split(deliveries[0]):
            self._queue.put_groups(isolate.singles(split(deliveries[0], self._policy.largest)))
        elif deliveries[0].memory_failures == 0:
            deliveries[0].memory_failures = 1  # alone it may fit, now that what ran beside it is done
            self._queue.put_groups([deliveries])
        else:
            self._answers.retry(deliveries[0], "memory", failed.message)
            self._settle(deliveries[0])

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
