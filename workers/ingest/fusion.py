"""Jobs of a fused pipeline: run in memory, their steps queued straight into the models' batches.

To those who hand over requests this looks like the batches of one model: a job is put, and answered once. Inside, each
step that the plan asks for becomes a delivery in its model's queue, where rows of different jobs share batches, and
what ends there goes back to the plan. One record is read and one response published for each job; whatever happens in
between is done again by the next owner of the partition if this worker dies.

Where the last step's model streams and the caller takes parts, they are published as they come, by the plan's rules.

Steps keep the rules of chained ones: their time limits, retries after a delay, what is dead-lettered, cancellation.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from contracts.advance import advance, start
from contracts.clock import Clock
from contracts.emissions import Job
from contracts.errors import InvalidRequest
from contracts.linear_tail import end_of, part_of, tail_of
from contracts.messages import Ran, Receipt, RequestBody, Status
from contracts.names import ModelVersion
from contracts.plans import Answer, Ask, Emission, Failure, Outcome, Plan, Skip, Value
from contracts.retries import next_delay
from contracts.tensors import Tensor
from workers.draining.courier import Courier, Done
from workers.ingest import metrics
from workers.ingest.batcher import Batcher
from workers.ingest.delivery import Delivery, Origin, Place
from workers.ingest.fused_run import FusedRun, FusedStep, step_of
from workers.ingest.launcher import Launcher
from workers.ingest.onward import RETRIED
from workers.ingest.responder import PART_TOO_LARGE
from workers.ingest.validate import Validator

log = logging.getLogger(__name__)


class Desk(Protocol):
    """The pipeline's responder, as far as jobs need it."""

    def put_aside(self, origin: Origin, message: str, attempts: int, then: Done) -> None:
        """Keep the record of a job that has a poisonous step, then go on."""

    def unroutable(self, origin: Origin, message: str, then: Done) -> None:
        """Keep a job whose answer has nowhere to go, then go on."""

    def send_part(self, origin: Origin, key: ModelVersion, outputs: tuple[Tensor, ...], place: Place) -> bool:
        """Send a part of a job's answer; False when it is too large."""
        ...


class FusedModel(NamedTuple):
    """One model of the plan."""

    validator: Validator
    batcher: Batcher


class Fusion:
    """The jobs of one fused pipeline in this worker."""

    def __init__(
        self,
        plan: Plan,
        launcher: Launcher,
        *,
        courier: Courier,
        desk: Desk,
        clock: Clock,
        retry_delays: Sequence[float],
        settled: Callable[[Delivery], None],
    ) -> None:
        """`settled` is told of requests that were suspects and have an outcome."""
        self._settled = settled
        self._plan = plan
        self._launcher = launcher
        self._courier = courier
        self._desk = desk
        self._clock = clock
        self._retry_delays = retry_delays
        self._runs: set[FusedRun] = set()
        self.models: Mapping[ModelVersion, FusedModel] = {}
        """To be given before the first job."""

    # --- towards the models -------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery, past: Delivery | None = None) -> None:
        """Begin a job; call `pump` after the last of several."""
        run = FusedRun(self._plan, delivery, past)
        self._runs.add(run)
        if self._plan.joins:
            left = max(0.0, delivery.deadline - self._clock.monotonic())
            run.timers.append(asyncio.get_running_loop().call_later(left, self._time_is_over, run))
        self._go_on(run, self._taken(run, lambda: start(self._plan, delivery.inputs, delivery.parameters)))

    def run_alone(self, delivery: Delivery) -> None:
        """Begin a job whose request is a suspect: each of its steps has the engine to itself."""
        self.put(delivery, delivery)
        self.pump()

    def pump(self) -> None:
        """Launch what can be launched now."""
        self._launcher.pump()

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for a batch."""
        return sum(model.batcher.waiting_rows for model in self.models.values())

    @property
    def open_jobs(self) -> int:
        """Jobs that were begun and not answered."""
        return len(self._runs)

    async def wait_for_room(self) -> None:
        """Return when the queue of every model takes more."""
        for model in self.models.values():
            await model.batcher.wait_for_room()

    @property
    def has_room(self) -> bool:
        """Whether the queue of every model takes more."""
        return all(model.batcher.has_room for model in self.models.values())

    @property
    def room_rows(self) -> int:
        """How many more rows the fullest queue is to have, at least one."""
        return min(model.batcher.room_rows for model in self.models.values())

    def _taken(self, run: FusedRun, emit: Callable[[], Iterable[Emission]]) -> list[Ask]:
        try:
            return run.job.take(emit())
        except Exception as exc:  # let through, it would leave the job without an outcome for ever
            log.exception("job %s cannot go on", run.request.origin.request_id)
            return run.job.take([_lost_way(exc)])

    def _attempt(self, run: FusedRun, make: Callable[[], Answer]) -> Answer:
        try:
            return make()
        except Exception as exc:  # the same
            log.exception("job %s cannot be answered", run.request.origin.request_id)
            return _lost_way(exc)

    def _go_on(self, run: FusedRun, asks: Iterable[Ask]) -> None:
        todo = deque(asks)
        while todo and not run.is_over:
            ask = todo.popleft()
            failure = self._ask(run, ask, 1, run.ran)
            if failure is not None:
                todo += self._after(run, ask, failure)
        for join, timeout_ms in run.job.begun:
            self._later(run, timeout_ms / 1000, partial(run.job.late, join))
        run.job.begun.clear()
        if run.job.answer is not None and not run.is_over:
            self._answer(run, run.job.answer)

    def _ask(self, run: FusedRun, ask: Ask, attempt: int, ran: Ran | None) -> Failure | None:
        """Queue a step; why it cannot be, or None."""
        model = self.models[ask.model]
        try:
            checked = model.validator.check(RequestBody(ask.inputs, ask.parameters))
        except InvalidRequest as exc:
            return Failure(Status.INVALID, str(exc), ask.node)
        now, request = self._clock.monotonic(), run.request
        origin = request.origin
        deadline = request.deadline if ask.timeout_ms is None else min(request.deadline, now + ask.timeout_ms / 1000)
        step = Delivery(
            Origin(origin.claim, origin.record, origin.request_id, None, attempt, FusedStep(run, ask, attempt, ran)),
            inputs=checked.inputs,
            parameters=ask.parameters,
            rows=checked.rows,
            batch_key=checked.batch_key,
            taken=now,
            deadline=deadline,
            queued_us=request.queued_us,
            lane=request.lane,
            stream=request.stream and tail_of(self._plan, ask.node) is not None,
        )
        if run.past is None:
            model.batcher.put(step)
        else:
            step.lost, step.lost_alone, step.is_journaled = run.past.lost, run.past.lost_alone, run.past.is_journaled
            run.past.is_journaled = False  # one launch was journaled; those that follow are anew
            model.batcher.run_alone(step)
        return None

    def _after(self, run: FusedRun, ask: Ask, outcome: Outcome) -> list[Ask]:
        return self._taken(run, lambda: advance(self._plan, ask.node, ask.branch, outcome, ask.carried))

    # --- back from the models -----------------------------------------------------------------------------------------

    def part(self, delivery: Delivery, outputs: tuple[Tensor, ...], place: Place, receipt: Receipt) -> bool:
        """The last step has a part; False when that ended the step, or the job had ended."""
        step = step_of(delivery)
        run, ask = step.run, step.ask
        if run.is_over:
            return False
        values = {tensor.name: tensor for tensor in outputs}
        answer = self._attempt(run, lambda: part_of(self._plan, ask.node, values, ask.carried))
        run.has_run = True
        if answer.failure is not None:
            run.ran = step.ended(receipt)
            self._answer(run, answer)
            return False
        is_sent = self._desk.send_part(run.request.origin, self._plan.pipeline, answer.outputs, place)
        if not is_sent:
            self.failed(delivery, Failure(Status.INTERNAL, PART_TOO_LARGE, ask.node), receipt)
        return is_sent

    def succeeded(
        self, delivery: Delivery, outputs: tuple[Tensor, ...], receipt: Receipt, place: Place | None = None
    ) -> None:
        """A step has its outputs, views of a slot: what is needed of them is copied before this returns."""
        step = step_of(delivery)
        run, ask = step.run, step.ask
        if run.is_over:
            return
        used = self._plan.by_name[ask.node].outputs
        tensors = {
            tensor.name: Tensor(tensor.name, tensor.datatype, tensor.shape, memoryview(bytes(tensor.data)))
            for tensor in outputs
            if tensor.name in used
        }
        run.has_run, run.ran = True, step.ended(receipt)
        if place is not None:
            at, name = place
            self._answer(
                run, self._attempt(run, lambda: end_of(self._plan, ask.node, tensors, ask.carried, index=at, run=name))
            )
        else:
            self._go_on(run, self._after(run, ask, Value(tensors) if outputs else Skip()))  # a stream without parts

    def failed(self, delivery: Delivery, failure: Failure, receipt: Receipt) -> None:
        """A step has no outputs."""
        step = step_of(delivery)
        run = step.run
        if run.is_over or self._leaves(run):
            return
        run.has_run, run.ran = True, step.ended(receipt)
        if failure.status is Status.CANCELLED:
            self._answer(run, Answer(failure=failure))
            return
        node = self._plan.by_name[step.ask.node]
        if failure.status in RETRIED and step.attempt <= node.retries and self._put_off(step):
            return
        if failure.status is Status.POISON:
            then = partial(self._gave_up, run, step.ask, failure)
            self._desk.put_aside(run.request.origin, failure.message, delivery.lost, then)
        else:
            self._gave_up(run, step.ask, failure)

    def retry(self, delivery: Delivery, failure: Failure, receipt: Receipt) -> None:
        """A step failed for a reason that passes."""
        step = step_of(delivery)
        if not step.run.is_over and not self._put_off(step):
            self.failed(delivery, failure, receipt)

    def _gave_up(self, run: FusedRun, ask: Ask, failure: Failure, _: object = None) -> None:
        if not run.is_over:
            self._go_on(run, self._after(run, ask, failure))
            self.pump()

    def _put_off(self, step: FusedStep) -> bool:
        """Ask again after a delay; False when the step has had its attempts, or the job no time for that."""
        run, timeout_ms = step.run, step.ask.timeout_ms
        left = run.request.deadline - self._clock.monotonic()
        delay = self._retry_delays[min(step.attempt, len(self._retry_delays)) - 1]
        if timeout_ms is not None:
            left = min(left, delay + timeout_ms / 1000)
        if next_delay(step.attempt, left, self._retry_delays) is None:
            return False
        metrics.RETRIES.labels("step").inc()
        self._later(run, delay, partial(self._again, step))
        return True

    def _again(self, step: FusedStep) -> list[Ask]:
        failure = self._ask(step.run, step.ask, step.attempt + 1, step.ran)
        return [] if failure is None else self._after(step.run, step.ask, failure)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _later(self, run: FusedRun, seconds: float, what: Callable[[], list[Ask]]) -> None:
        def due() -> None:
            if not run.is_over:
                self._go_on(run, self._guarded(run, what))
                self.pump()

        run.timers.append(asyncio.get_running_loop().call_later(seconds, due))

    def _guarded(self, run: FusedRun, what: Callable[[], list[Ask]]) -> list[Ask]:
        asks: list[Ask] = []

        def emit() -> Iterable[Emission]:
            asks.extend(what())
            return ()

        return asks + self._taken(run, emit)

    def _time_is_over(self, run: FusedRun) -> None:
        """Joins go on without what has not come; what is left of the job then is answered by that."""
        if run.is_over or self._leaves(run):
            return
        self._go_on(run, self._guarded(run, run.job.all_late))
        self.pump()

    def _leaves(self, run: FusedRun) -> bool:
        """Whether a job's partition is another worker's by now, who may still answer OK."""
        claim = run.request.origin.claim
        if claim.is_over and run.end():
            self._runs.discard(run)
            claim.dropped()
        return claim.is_over

    # --- the end of a job ---------------------------------------------------------------------------------------------

    def _answer(self, run: FusedRun, answer: Answer) -> None:
        run.end()
        self._runs.discard(run)
        origin = run.request.origin
        status = Status.OK if answer.failure is None else answer.failure.status
        if status is not Status.OK and origin.claim.is_over:
            origin.claim.dropped()
            return
        if run.past is not None:
            self._settled(run.past)
        metrics.RESPONSES.labels(status).inc()
        self._courier.send(
            Job(origin.request_id, self._plan, origin.reply),
            [answer],
            run.request.deadline,
            lambda _: origin.claim.answered(origin.record.offset),
            ran=run.ran,
            unroutable=partial(self._desk.unroutable, origin),
        )

    def drop(self, unwanted: Callable[[Delivery], bool], *, begun: bool = False) -> None:
        """Forget jobs that the next owner of their partition will read again; those of which something has run
        already are finished here unless they are meant, too.
        """
        leaving = [run for run in self._runs if unwanted(run.request) and (begun or not run.has_run)]
        for run in leaving:
            self._runs.discard(run)
            if run.end():
                run.request.origin.claim.dropped()
        if leaving:
            for model in self.models.values():
                model.batcher.drop(lambda step: step_of(step).is_over)


def _lost_way(exc: Exception) -> Answer:
    text = f"what follows could not be found: {type(exc).__name__}"
    return Answer(failure=Failure(Status.INTERNAL, text, ""))
