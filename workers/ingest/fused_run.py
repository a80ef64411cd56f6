"""A job of a fused pipeline that is under way, and its steps as they stand in the queues of its models."""

from __future__ import annotations

import asyncio

import msgspec

from contracts.messages import Ran, Receipt, RequestHeaders, ran_after
from contracts.plans import Ask, Plan
from workers.ingest.delivery import Delivery, Leg
from workers.ingest.fused_job import FusedJob


class FusedRun:
    """A job under way. `past` is its request if an engine or a worker has ended with it before."""

    __slots__ = ("has_run", "is_over", "job", "past", "ran", "request", "timers")

    def __init__(self, plan: Plan, request: Delivery, past: Delivery | None) -> None:
        self.job = FusedJob(plan)
        self.request = request
        self.past = past
        self.ran: Ran | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.has_run = self.is_over = False

    def end(self) -> bool:
        """Nothing that still runs of it counts; False when it had ended already."""
        was_over, self.is_over = self.is_over, True
        for timer in self.timers:
            timer.cancel()
        return not was_over


class FusedStep(Leg):
    """A step's place in its job; the delivery of the step carries it. `ran`: the step that led to this one."""

    __slots__ = ("ask", "attempt", "run")

    def __init__(self, run: FusedRun, ask: Ask, attempt: int, ran: Ran | None) -> None:
        super().__init__(RequestHeaders(run.request.origin.request_id, None), run.request.deadline)
        self.run, self.ask, self.attempt, self.ran = run, ask, attempt, ran

    def ended(self, receipt: Receipt) -> Ran:
        """The way through this step; its job lay in the log only once."""
        if self.ran is not None:
            receipt = msgspec.structs.replace(receipt, queued_us=0)
        return ran_after(self.ran, self.ask.node, receipt, self.ask.branch)

    @property
    def is_over(self) -> bool:
        """Whether its job has ended without it."""
        return self.run.is_over

    def end(self) -> bool:
        """The job leaves this worker's hands; False when it has already."""
        return self.run.end()


def step_of(delivery: Delivery) -> FusedStep:
    """The step that a delivery in a model's queue is."""
    step = delivery.origin.leg
    assert isinstance(step, FusedStep)  # noqa: S101 - nothing else is queued here
    return step
