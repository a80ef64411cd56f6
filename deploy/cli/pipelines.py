"""The pipelines of a fleet file: compiled before anything is registered, so that every fault has its line.

A registered pipeline has a deployment of the same name, whose workers put parts together. Its version never changes:
what may change are workers, topics, limits and the description.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from contracts.adapters.registry import RegisteredModel, RegisteredPipeline, RegistryState
from contracts.compile import check_pipeline, describe, signature_of_spec
from contracts.errors import ConfigurationError
from contracts.names import ModelVersion
from contracts.pipelines import PipelineSpec
from contracts.routing import labelled, pin
from contracts.specs import DeploymentSpec, DeviceSpec, FleetSpec, RouteSpec
from contracts.typing_pass import Signature

if TYPE_CHECKING:
    from deploy.cli.repository import FleetFile, PipelineFile

log = logging.getLogger(__name__)

JOINER = DeviceSpec(kind="cpu", compute=5, memory_mib=128)
"""What a worker takes that only puts parts together: a small share of a core."""
_CHANGEABLE = frozenset({"workers", "topic", "limits", "description"})


def with_deployments(fleet: FleetFile) -> FleetSpec:
    """The fleet's spec with the deployments of its pipelines."""
    added = tuple(deployment_of(one.spec) for one in fleet.pipelines)
    return fleet.spec.model_copy(update={"deployments": (*fleet.spec.deployments, *added)})


def deployment_of(spec: PipelineSpec) -> DeploymentSpec:
    """How a pipeline is deployed."""
    return DeploymentSpec(
        model=spec.name,
        version=spec.version,
        workers=spec.workers,
        device=spec.device or JOINER,
        topic=spec.topic,
    )


def registrations(
    fleet: FleetFile, state: RegistryState, *, prune: bool = False, replace: bool = False
) -> dict[ModelVersion, RegisteredPipeline]:
    """What is to be registered. Raises ConfigurationError with the lines of everything that is wrong."""
    models = {model.key.model for model in fleet.models} | {key.model for key in state.models}
    for one in fleet.pipelines:
        if one.spec.name in models:
            line = one.lines.at(("name",)) or 1
            msg = f"{one.source}:{line}: a model has the name {one.spec.name}, too: rename the pipeline"
            raise ConfigurationError(msg)
    after = _World(fleet, state, prune=prune)
    return {one.spec.key: _registration(one, after, state, replace=replace) for one in fleet.pipelines}


def _registration(one: PipelineFile, after: _World, state: RegistryState, *, replace: bool) -> RegisteredPipeline:
    known = state.pipelines.get(one.spec.key)
    spec = one.spec.canonical()
    if known is not None and not replace and _essence(known.spec) != _essence(spec):
        msg = (
            f"{one.source}: pipeline {one.spec.key} is registered with other steps: a version never changes, so give "
            "this one a new version number (--replace overrides this where nobody else uses the fleet)"
        )
        raise ConfigurationError(msg)
    # A job's parts meet in one of the partitions that its plan was compiled with, so there may be more but never fewer.
    joins = max(one.spec.partitions, known.joins if known is not None else 0)
    found = check_pipeline(
        one.spec, pin=after.pin, signature_of=after.signature_of, pipeline_of=after.pipeline_of, partitions=joins
    )
    if found.plan is None:
        raise ConfigurationError(describe(found.faults, one.source, one.lines))
    if found.faults:
        log.warning("%s", describe(found.faults, one.source, one.lines))
    return RegisteredPipeline(name=one.spec.name, version=one.spec.version, spec=spec, joins=joins)


def _essence(spec: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in spec.items() if name not in _CHANGEABLE}


class _World:
    """The registry as it will be."""

    def __init__(self, fleet: FleetFile, state: RegistryState, *, prune: bool) -> None:
        wanted = {deployment.key: deployment for deployment in with_deployments(fleet).deployments}
        after = wanted if prune else {**state.deployments, **wanted}
        self._deployed = {key for deployment in after.values() for key in deployment.keys}
        self._routes: dict[str, RouteSpec] = {**({} if prune else state.routes), **fleet.spec.routes}
        self._models: dict[ModelVersion, RegisteredModel] = {**state.models, **{one.key: one for one in fleet.models}}
        self._pipelines = {key: PipelineSpec.model_validate(one.spec) for key, one in state.pipelines.items()}
        self._pipelines |= {one.spec.key: one.spec for one in fleet.pipelines}

    def pin(self, name: str, version: int | None, label: str | None) -> ModelVersion:
        """What a step names, as a caller would find it at this moment."""
        number = labelled(name, label, self._routes) if label else version
        return pin(name, number, routes=self._routes, deployed=self._deployed)

    def signature_of(self, key: ModelVersion) -> Signature | None:
        """What a model takes and gives."""
        model = self._models.get(key)
        return None if model is None else signature_of_spec(model.spec)

    def pipeline_of(self, key: ModelVersion) -> PipelineSpec:
        """A pipeline that is used as a step."""
        if key not in self._pipelines:
            msg = f"there is no pipeline {key}"
            raise ConfigurationError(msg)
        return self._pipelines[key]
