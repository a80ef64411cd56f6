"""A step of a job has ended here: what comes next, published before the step counts as answered.

A model's worker treats a pipeline's request like any other until it has its outcome; instead of answering the caller it
asks the plan what follows, publishes that, and marks the request as answered when all of it is acknowledged. When it
dies in between, its successor does the same again with the same ids.

A step's own retries come first: what may pass goes through the retry topic as often as the plan says, as long as the
job has time for it.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

from contracts.advance import advance
from contracts.clock import Clock
from contracts.emissions import Job
from contracts.messages import Hop, Ran, Receipt, RequestHeaders, Status
from contracts.names import ModelVersion
from contracts.plans import Answer, Emission, Env, Failure, Outcome, Plan, Value
from contracts.references import missing
from contracts.tensors import Tensor
from workers.draining.courier import Courier, Done
from workers.draining.lookups import Lookups
from workers.draining.metrics import count_spared
from workers.draining.plan_cache import PlanCache, unknown_plan
from workers.ingest.delivery import Origin

log = logging.getLogger(__name__)

RETRIED = frozenset({Status.INTERNAL, Status.POISON, Status.DEADLINE_EXCEEDED, Status.OVERLOADED})


class Desk(Protocol):
    """What an answer needs of the responder."""

    def put_off(self, origin: Origin, message: str, *, left: float, timeout: float | None) -> bool:
        """Try it again later; False when no time is left for that."""

    def put_aside(self, origin: Origin, message: str, attempts: int, then: Done) -> None:
        """Keep it as a dead letter, then go on."""

    def unroutable(self, origin: Origin, message: str, then: Done) -> None:
        """Keep a request whose answer has nowhere to go, then go on."""


class Onward:
    """Takes the outcomes of one model version's steps."""

    def __init__(
        self, key: ModelVersion, plans: PlanCache, courier: Courier, lookups: Lookups, desk: Desk, clock: Clock
    ) -> None:
        self._key = key
        self._plans = plans
        self._courier = courier
        self._lookups = lookups
        self._desk = desk
        self._clock = clock

    def expect(self, hop: Hop) -> None:
        """A step of this plan was taken: have the plan at hand when it ends."""
        self._plans.fetch(hop)

    def succeed(self, origin: Origin, outputs: tuple[Tensor, ...], receipt: Receipt) -> None:
        """The model answered. The outputs may be views: what is needed of them is copied before this returns."""
        hop, plan = _hop(origin), self._plans.get(_hop(origin).plan)
        if plan is None or missing(plan, hop.step, [_carried(origin)]):
            outputs = tuple(Tensor(t.name, t.datatype, t.shape, memoryview(bytes(t.data))) for t in outputs)
        outcome = Value({tensor.name: tensor for tensor in outputs})
        self._plans.when(hop, partial(self._go_on, origin, outcome, receipt))

    def fail(
        self, origin: Origin, status: Status, message: str, receipt: Receipt, *, retryable: bool, attempts: int = 0
    ) -> None:
        """The step failed; of a poisonous one `attempts` were lost with the engine."""
        hop = _hop(origin)
        failure = Failure(status, message, hop.step, retryable)
        self._plans.when(hop, partial(self._failed, origin, failure, receipt, attempts))

    def _failed(self, origin: Origin, failure: Failure, receipt: Receipt, attempts: int, plan: Plan | None) -> None:
        if plan is not None and self._tries_again(origin, failure, plan):
            return
        if failure.status is Status.POISON:
            self._desk.put_aside(
                origin, failure.message, attempts, lambda _: self._go_on(origin, failure, receipt, plan)
            )
        else:
            self._go_on(origin, failure, receipt, plan)

    def _tries_again(self, origin: Origin, failure: Failure, plan: Plan) -> bool:
        node = plan.by_name.get(_hop(origin).step)
        if node is None or failure.status not in RETRIED or origin.attempt > node.retries or origin.leg is None:
            return False
        timeout = None if node.timeout_ms is None else node.timeout_ms / 1000
        left = origin.leg.deadline - self._clock.monotonic()
        return self._desk.put_off(origin, failure.message, left=left, timeout=timeout)

    def _go_on(self, origin: Origin, outcome: Outcome, receipt: Receipt, plan: Plan | None) -> None:
        leg, hop = origin.leg, _hop(origin)
        assert leg is not None  # noqa: S101 - only steps come here
        if plan is None:
            self._unknown_plan(origin, leg.headers, hop)
            return

        def send(emissions: list[Emission]) -> None:
            self._courier.send(
                Job.of(leg.headers, plan),
                emissions,
                leg.deadline,
                lambda _: origin.claim.answered(origin.record.offset),
                ran=Ran(hop.step, receipt, hop.branch),
                unroutable=partial(self._desk.unroutable, origin),
            )

        self._lookups.when(
            plan,
            hop.step,
            [_carried(origin)],
            leg.headers.tenant,
            lambda envs: send(self._next(plan, hop, outcome, envs[0])),
            lambda failure: send([Answer(failure=failure)]),
        )

    def _next(self, plan: Plan, hop: Hop, outcome: Outcome, carried: Env) -> list[Emission]:
        node = plan.by_name.get(hop.step)
        if node is None or node.model != self._key:
            text = f"plan {plan.digest} has no step {hop.step!r} for {self._key}"
            return [Answer(failure=Failure(Status.INVALID, text, hop.step))]
        if isinstance(outcome, Failure) and outcome.status is Status.CANCELLED:  # the job is, not only this step of it
            return [Answer(failure=outcome)]
        try:
            return advance(plan, hop.step, hop.branch, outcome, carried, spared=count_spared)
        except Exception as exc:  # let through, it would leave the job without an outcome for ever
            log.exception("job %s cannot go on behind %s", hop.job, hop.step)
            text = f"what follows could not be found: {type(exc).__name__}"
            return [Answer(failure=Failure(Status.INTERNAL, text, hop.step))]

    def _unknown_plan(self, origin: Origin, headers: RequestHeaders, hop: Hop) -> None:
        """Nobody can say what follows, so the job ends here."""
        failure = unknown_plan(hop.plan)
        job = Job.of(headers, Plan(pipeline=ModelVersion.parse(hop.pipeline), nodes=(), partitions=1))
        self._courier.send(
            job,
            [Answer(failure=failure)],
            self._clock.monotonic(),
            lambda _: origin.claim.answered(origin.record.offset),
            unroutable=partial(self._desk.unroutable, origin),
        )


def _carried(origin: Origin) -> Env:
    return {} if origin.leg is None else {tensor.name: tensor for tensor in origin.leg.carried}


def _hop(origin: Origin) -> Hop:
    assert origin.leg is not None  # noqa: S101 - only steps come here
    assert origin.leg.headers.hop is not None  # noqa: S101
    return origin.leg.headers.hop
