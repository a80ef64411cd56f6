"""A step of a job has ended here: what comes next, published before the step counts as answered.

A model's worker treats a pipeline's request like any other until it has its outcome; instead of answering the caller it
asks the plan what follows, publishes that, and marks the request as answered when all of it is acknowledged. When it
dies in between, its successor does the same again with the same ids.

Where the model streams, its caller takes parts and nothing but inline work is behind the step, each part goes on by
itself, straight to the caller.

A step's own retries come first: what may pass goes through the retry topic as often as the plan says, as long as the
job has time for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from contracts.advance import advance
from contracts.clock import Clock
from contracts.emissions import Job
from contracts.linear_tail import end_of, part_of, tail_of
from contracts.messages import Hop, Receipt, Status, ran_after
from contracts.names import ModelVersion
from contracts.plans import Answer, Emission, Env, Failure, Outcome, Plan, Skip, Value
from contracts.references import missing
from contracts.tensors import Tensor
from workers.draining.courier import Courier, Done
from workers.draining.lookups import Lookups
from workers.draining.metrics import count_spared
from workers.draining.plan_cache import PlanCache, unknown_plan
from workers.ingest.delivery import Leg, Origin, Place

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

    def when_known(self, origin: Origin, then: Callable[[bool], None]) -> None:
        """Call back with whether this step's answer passes in parts, which `part` makes ready then."""
        hop, leg = _hop(origin), _leg(origin)

        def found(plan: Plan | None) -> None:
            if plan is not None and self._passes_parts(plan, hop.step, _carried(origin)):
                leg.plan = plan
            then(leg.plan is not None)

        self._plans.when(hop, found)

    def _passes_parts(self, plan: Plan, step: str, carried: Env) -> bool:
        try:
            is_tail = tail_of(plan, step) is not None and plan.by_name[step].model == self._key
            return is_tail and not missing(plan, step, [carried])
        except (KeyError, IndexError):  # a plan that makes no sense: going on says so
            return False

    def part(self, origin: Origin, outputs: tuple[Tensor, ...], receipt: Receipt) -> tuple[Tensor, ...] | None:
        """What the caller gets of a part; None when that has failed, which ends the job."""
        hop, plan = _hop(origin), _leg(origin).plan
        assert plan is not None  # noqa: S101 - nobody hands out parts before it is known
        values = {tensor.name: tensor for tensor in outputs}
        (answer,) = _attempt(hop, lambda: [part_of(plan, hop.step, values, _carried(origin))])
        if isinstance(answer, Answer) and answer.failure is None:
            return answer.outputs
        self._send(origin, plan, [answer], receipt)
        return None

    def succeed(
        self, origin: Origin, outputs: tuple[Tensor, ...], receipt: Receipt, place: Place | None = None
    ) -> None:
        """The model answered. The outputs may be views: what is needed of them is copied before this returns."""
        hop, carried = _hop(origin), _carried(origin)
        plan = self._plans.get(hop.plan)
        if plan is None or missing(plan, hop.step, [carried]):
            plan, outputs = None, _copied(outputs)
        values = {tensor.name: tensor for tensor in outputs}
        if place is not None:
            self._plans.when(hop, partial(self._end, origin, values, receipt, place))
            return
        outcome = Value(values) if values else Skip()  # a stream without parts
        if plan is None:
            self._plans.when(hop, partial(self._go_on, origin, outcome, receipt))
        else:  # as nearly always: nothing is waited for
            self._send(origin, plan, self._next(plan, hop, outcome, carried), receipt)

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

    def _end(
        self, origin: Origin, outputs: dict[str, Tensor], receipt: Receipt, place: Place, plan: Plan | None
    ) -> None:
        hop = _hop(origin)
        if plan is None:
            self._unknown_plan(origin, hop)
            return

        def end() -> list[Emission]:
            return [end_of(plan, hop.step, outputs, _carried(origin), index=place.number, run=place.run)]

        self._send(origin, plan, _attempt(hop, end), receipt)

    def _go_on(self, origin: Origin, outcome: Outcome, receipt: Receipt, plan: Plan | None) -> None:
        hop = _hop(origin)
        if plan is None:
            self._unknown_plan(origin, hop)
            return
        self._lookups.when(
            plan,
            hop.step,
            [_carried(origin)],
            _leg(origin).headers.tenant,
            lambda envs: self._send(origin, plan, self._next(plan, hop, outcome, envs[0]), receipt),
            lambda failure: self._send(origin, plan, [Answer(failure=failure)], receipt),
        )

    def _send(self, origin: Origin, plan: Plan, emissions: Sequence[Emission], receipt: Receipt) -> None:
        leg, hop = _leg(origin), _hop(origin)
        self._courier.send(
            Job.of(leg.headers, plan),
            emissions,
            leg.deadline,
            lambda _: origin.claim.answered(origin.record.offset),
            ran=ran_after(leg.ran, hop.step, receipt, hop.branch),
            unroutable=partial(self._desk.unroutable, origin),
        )

    def _next(self, plan: Plan, hop: Hop, outcome: Outcome, carried: Env) -> Sequence[Emission]:
        node = plan.by_name.get(hop.step)
        if node is None or node.model != self._key:
            text = f"plan {plan.digest} has no step {hop.step!r} for {self._key}"
            return [Answer(failure=Failure(Status.INVALID, text, hop.step))]
        if isinstance(outcome, Failure) and outcome.status is Status.CANCELLED:  # the job is, not only this step of it
            return [Answer(failure=outcome)]
        return _attempt(hop, lambda: advance(plan, hop.step, hop.branch, outcome, carried, spared=count_spared))

    def _unknown_plan(self, origin: Origin, hop: Hop) -> None:
        """Nobody can say what follows, so the job ends here."""
        failure = unknown_plan(hop.plan)
        job = Job.of(_leg(origin).headers, Plan(pipeline=ModelVersion.parse(hop.pipeline), nodes=(), partitions=1))
        self._courier.send(
            job,
            [Answer(failure=failure)],
            self._clock.monotonic(),
            lambda _: origin.claim.answered(origin.record.offset),
            unroutable=partial(self._desk.unroutable, origin),
        )


def _attempt(hop: Hop, act: Callable[[], Sequence[Emission]]) -> Sequence[Emission]:
    try:
        return act()
    except Exception as exc:  # let through, it would leave the job without an outcome for ever
        log.exception("job %s cannot go on behind %s", hop.job, hop.step)
        text = f"what follows could not be found: {type(exc).__name__}"
        return [Answer(failure=Failure(Status.INTERNAL, text, hop.step))]


def _copied(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors that stay what they are when the slot that they stand in is used again."""
    return tuple(Tensor(t.name, t.datatype, t.shape, memoryview(bytes(t.data))) for t in tensors)


def _leg(origin: Origin) -> Leg:
    assert origin.leg is not None  # noqa: S101 - only steps come here
    return origin.leg


def _carried(origin: Origin) -> Env:
    return {} if origin.leg is None else {tensor.name: tensor for tensor in origin.leg.carried}


def _hop(origin: Origin) -> Hop:
    hop = _leg(origin).headers.hop
    assert hop is not None  # noqa: S101 - nor without one
    return hop
