"""What the batches of a fused pipeline's model say, on its way back to the jobs."""

from __future__ import annotations

from collections.abc import Callable

from contracts.messages import Receipt, Status
from contracts.plans import Failure
from contracts.tensors import Tensor
from workers.ingest.delivery import Delivery, Place
from workers.ingest.fused_run import step_of
from workers.ingest.fusion import Fusion
from workers.ingest.responder import Responder


class FusedAnswers:
    """What the batcher of one model says about steps."""

    def __init__(self, fusion: Fusion, responder: Responder, worker: str) -> None:
        self._fusion = fusion
        self._responder = responder
        self._worker = worker

    @property
    def device(self) -> str:
        """Where the engine says it runs."""
        return self._responder.device

    @property
    def has_room(self) -> bool:
        """Whether the callers' reply topics take further parts."""
        return self._responder.has_room

    @property
    def way_back_seconds(self) -> float:
        """A step's outputs are where they are needed already."""
        return 0.0

    def batch_answered(self) -> None:
        """Steps are no responses."""

    def when_known(self, delivery: Delivery, then: Callable[[bool], None]) -> None:
        """Only those steps ask for parts whose jobs pass them on."""
        then(True)

    def partial(self, delivery: Delivery, outputs: tuple[Tensor, ...], place: Place) -> bool:
        """A step has a part."""
        return self._fusion.part(delivery, outputs, place, self._receipt(delivery))

    def succeed(
        self, delivery: Delivery, outputs: tuple[Tensor, ...], receipt: Receipt, place: Place | None = None
    ) -> None:
        """A step has its outputs."""
        self._fusion.succeeded(delivery, outputs, receipt, place)

    def fail(self, delivery: Delivery, status: Status, message: str, *, retryable: bool = False) -> None:
        """A step failed."""
        failure = Failure(status, message, step_of(delivery).ask.node, retryable)
        self._fusion.failed(delivery, failure, self._receipt(delivery))

    def retry(self, delivery: Delivery, reason: str, message: str) -> None:
        """A step failed for a reason that passes."""
        failure = Failure(Status.INTERNAL, message, step_of(delivery).ask.node, retryable=True)
        self._fusion.retry(delivery, failure, self._receipt(delivery))

    def poison(self, delivery: Delivery, message: str) -> None:
        """A step cannot be run."""
        self.fail(delivery, Status.POISON, message)

    def _receipt(self, delivery: Delivery) -> Receipt:
        return Receipt(
            worker=self._worker,
            device=self.device,
            attempt=delivery.origin.attempt,
            queued_us=delivery.queued_us,
            batched_us=delivery.batched_us,
        )
