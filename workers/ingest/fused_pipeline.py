"""A fused pipeline in a worker: its topic, its jobs, and the batches of all models of its plan.

    drain ─▶ intake ─▶ fusion ⇄ batchers of the models ⇄ (launcher, engine)
                          └──▶ courier ─▶ publisher: the answer

The worker compiles the plan when it starts and keeps to it; when a route leads a step to another model version, the
scheduler replaces the worker by one that holds that version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contracts.adapters.compiled import compiled
from contracts.adapters.registry import RegisteredModel, RegistryState
from contracts.errors import ConfigurationError, InvalidRequest, ModelLoadError, ModelNotFound
from contracts.messages import Hop, RequestBody, RequestHeaders, SequenceStep
from contracts.names import ModelVersion
from contracts.plans import Plan
from contracts.tensors import Tensor
from workers.ingest.delivery import Leg
from workers.ingest.fused_answers import FusedAnswers
from workers.ingest.fusion import FusedModel, Fusion
from workers.ingest.intake import Intake
from workers.ingest.served_model import Served, Surroundings
from workers.ingest.validate import Checked, Validator


def plan_of(state: RegistryState, name: str, held: Sequence[str]) -> Plan | None:
    """The plan of a fused pipeline; None when `name` is no pipeline. Raises ModelLoadError when it needs other models
    than those that are held.
    """
    pipeline = state.pipelines.get(ModelVersion.parse(name))
    if pipeline is None:
        return None
    try:
        plan = compiled(pipeline, state)
    except (ConfigurationError, ModelNotFound) as exc:
        msg = f"pipeline {name} cannot be compiled: {exc}"
        raise ModelLoadError(msg) from exc
    if list(map(str, plan.models)) != list(held):
        msg = f"pipeline {name} needs {', '.join(map(str, plan.models))} by now, not {', '.join(held)}"
        raise ModelLoadError(msg)
    return plan


class FusedPipeline(Served):
    """Runs the jobs of one pipeline in memory."""

    def __init__(self, plan: Plan, models: Iterable[RegisteredModel], around: Surroundings) -> None:
        room = around.settings.blobs.in_flight_bytes  # what goes into slots are steps, not jobs
        super().__init__(plan.pipeline, plan.digest, around._replace(store=around.store._replace(request_bytes=room)))
        self.fusion = Fusion(
            plan,
            around.launcher,
            courier=around.courier,
            desk=self.responder,
            clock=around.clock,
            retry_delays=around.settings.worker.retry_delays_seconds,
            settled=self._suspects.settled,
        )
        answers = FusedAnswers(self.fusion, self.responder, around.lease.id)
        self.fusion.models = {
            model.key: FusedModel(Validator(model.spec), self._batcher(model, answers)) for model in models
        }
        anything = _AnyInputs()
        intake = _Intake(plan.pipeline, anything, self.responder, around.clock, around.broker_time)
        self._serve(intake, self.fusion, anything, keeps_order=False)


class _Intake(Intake):
    """Takes submissions: what they carry of a job is only its id, which is theirs."""

    def _leg(self, headers: RequestHeaders, hop: Hop, now: float, waited_ms: int) -> Leg | None:
        return None


class _AnyInputs:
    """The plan says what inputs it takes, and answers those that it does not."""

    def check_step(self, step: SequenceStep | None) -> None:
        """Pipelines keep no state between jobs."""
        if step is not None:
            msg = "a pipeline keeps no sequences; see the header sequence_id"
            raise InvalidRequest(msg)

    def check(self, body: RequestBody) -> Checked:
        """Nothing is wrong yet."""
        return Checked(body.inputs, 1, None, any(tensor.ref is not None for tensor in body.inputs))

    def check_content(self, inputs: tuple[Tensor, ...]) -> None:
        """Nor when its bytes are there."""
