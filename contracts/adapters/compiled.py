"""A registered pipeline, compiled under the routes and models of one revision of the registry."""

from __future__ import annotations

from msgspec import structs

from contracts.adapters.registry import RegisteredPipeline, RegistryState
from contracts.compile import compile_plan, signature_of_spec
from contracts.errors import ModelNotFound
from contracts.names import ModelVersion
from contracts.pipelines import PipelineSpec
from contracts.plans import Plan
from contracts.routing import labelled, pin
from contracts.typing_pass import Signature


def compiled(pipeline: RegisteredPipeline, state: RegistryState) -> Plan:
    """The plan of a pipeline under the routes and models of this moment. Raises ConfigurationError, ModelNotFound."""

    def pinned(name: str, version: int | None, label: str | None) -> ModelVersion:
        number = labelled(name, label, state.routes) if label else version
        return pin(name, number, routes=state.routes, deployed=state.served)

    def signature_of(key: ModelVersion) -> Signature | None:
        model = state.models.get(key)
        return None if model is None else signature_of_spec(model.spec)

    def pipeline_of(key: ModelVersion) -> PipelineSpec:
        if key not in state.pipelines:
            msg = f"there is no pipeline {key}"
            raise ModelNotFound(msg)
        return PipelineSpec.model_validate(state.pipelines[key].spec)

    plan = compile_plan(
        PipelineSpec.model_validate(pipeline.spec),
        pin=pinned,
        signature_of=signature_of,
        pipeline_of=pipeline_of,
        partitions=pipeline.joins,
    )
    laned = tuple(key for key in plan.models if key in state.served and state.served[key].topic.lanes)
    return structs.replace(plan, lanes=laned) if laned and not plan.is_fused else plan
