"""What applying a fleet file would change. Pure: the registry's state and a file's content in, a list of changes out.

Models and pipelines come before the deployments that run them, deployments before the routes that name them; removals
come last, in the opposite order, so that no reader of the registry ever sees a name without what it stands for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from msgspec import Struct
from pydantic import BaseModel

from contracts.adapters.registry import RegisteredModel, RegisteredPipeline, RegistryState
from contracts.errors import ConfigurationError
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, FleetSpec
from contracts.topics import collides

Kind = Literal["model", "pipeline", "deployment", "route"]
Verb = Literal["created", "changed", "unchanged", "removed", "left"]
_SHORT_DIGEST = 19  # "sha256:" and twelve digits


class Change(Struct, frozen=True):
    """One thing and what happens to it."""

    kind: Kind
    name: str
    change: Verb
    detail: str = ""


def changes(
    spec: FleetSpec,
    models: Mapping[ModelVersion, RegisteredModel],
    state: RegistryState,
    *,
    pipelines: Mapping[ModelVersion, RegisteredPipeline] | None = None,
    prune: bool = False,
    replace: bool = False,
) -> list[Change]:
    """What to do. `spec` has the deployments of the pipelines, too. Raises ConfigurationError for what must not be."""
    pipelines = pipelines or {}
    _check_immutable(models, state, replace=replace)
    check_kinds(models, pipelines, state)
    _check_names(models, state)
    deployments = {deployment.key: deployment for deployment in spec.deployments}
    left = {} if prune else {key: known for key, known in state.deployments.items() if key not in deployments}
    _check_homes(spec, left)
    _check_lanes(spec, models, state)
    _check_routes(spec, left)
    # What is new comes first: a model that moves from one deployment to another is served all the time.
    new_first = sorted(deployments.items(), key=lambda item: item[0] in state.deployments)
    return [
        *(_change("model", str(key), model, state.models.get(key)) for key, model in models.items()),
        *(_change("pipeline", str(key), wanted, state.pipelines.get(key)) for key, wanted in pipelines.items()),
        *(_change("deployment", str(key), wanted, state.deployments.get(key)) for key, wanted in new_first),
        *(_change("route", name, route, state.routes.get(name)) for name, route in spec.routes.items()),
        *_others("route", sorted(set(state.routes) - set(spec.routes)), prune=prune),
        *_others("deployment", [str(key) for key in sorted(set(state.deployments) - set(deployments))], prune=prune),
    ]


def _check_immutable(models: Mapping[ModelVersion, RegisteredModel], state: RegistryState, *, replace: bool) -> None:
    for key, model in models.items():
        known = state.models.get(key)
        if known is not None and known.digest != model.digest and not replace:
            msg = (
                f"the files of {key} are not those that were registered ({known.digest[:_SHORT_DIGEST]}… then, "
                f"{model.digest[:_SHORT_DIGEST]}… now): a version never changes, so give the new files a new version "
                "number (--replace overrides this where nobody else uses the fleet)"
            )
            raise ConfigurationError(msg)


def check_kinds(models: Collection[ModelVersion], pipelines: Collection[ModelVersion], state: RegistryState) -> None:
    """A name is that of a model or that of a pipeline: both are asked for in the same way."""
    both = {key.model for key in (*models, *state.models)} & {key.model for key in (*pipelines, *state.pipelines)}
    if both:
        msg = f"{min(both)} is the name of a model and of a pipeline; rename one of them"
        raise ConfigurationError(msg)


def _check_names(models: Mapping[ModelVersion, RegisteredModel], state: RegistryState) -> None:
    known = {key.model for key in state.models}
    for key in models:
        twin = next((name for name in sorted(known) if collides(key.model, name)), None)
        if twin is not None:
            msg = f"models {key.model} and {twin} (registered) would share Kafka metrics; rename one of them"
            raise ConfigurationError(msg)


def _check_homes(spec: FleetSpec, left: Mapping[ModelVersion, DeploymentSpec]) -> None:
    """A model version is served by one deployment; one that stays although the file does not name it counts."""
    homes = {key: known.key for known in left.values() for key in known.keys}
    for deployment in spec.deployments:
        for key in deployment.keys:
            if key in homes:
                msg = (
                    f"{key} is served by the deployment {homes[key]} already, which is not in the file: add it there "
                    "without this model, or remove it with --prune"
                )
                raise ConfigurationError(msg)


def _check_lanes(spec: FleetSpec, models: Mapping[ModelVersion, RegisteredModel], state: RegistryState) -> None:
    """What must stay in order has one log: between two topics there is none."""
    for deployment in spec.deployments:
        for key in deployment.keys if deployment.topic.lanes else ():
            known = models.get(key) or state.models.get(key)
            if known is None or not known.spec.keeps_order:
                continue
            what = "sequences" if known.spec.sequences is not None else "batching.order per_key"
            msg = (
                f"{key} has {what}, and topic.lanes of its deployment would spread requests that must stay in order "
                "over several topics: leave one of the two out"
            )
            raise ConfigurationError(msg)


def _check_routes(spec: FleetSpec, left: Mapping[ModelVersion, DeploymentSpec]) -> None:
    deployed = {key for deployment in (*spec.deployments, *left.values()) for key in deployment.keys}
    for name, route in spec.routes.items():
        if ModelVersion(name, route.default) not in deployed:
            msg = f"the route of {name} leads to version {route.default}, which is not deployed: add that deployment"
            raise ConfigurationError(msg)
        for label, version in route.labels.items():
            if ModelVersion(name, version) not in deployed:
                msg = f"label {label} of {name} leads to version {version}, which is not deployed: add that deployment"
                raise ConfigurationError(msg)


def _change(kind: Kind, name: str, wanted: BaseModel, known: BaseModel | None) -> Change:
    if known is None:
        return Change(kind, name, "created")
    if known == wanted:
        return Change(kind, name, "unchanged")
    return Change(kind, name, "changed", "; ".join(_differences(known.model_dump(), wanted.model_dump())))


def _differences(before: Mapping[str, object], after: Mapping[str, object], path: str = "") -> Iterator[str]:
    for name in after:
        old, new = before.get(name), after[name]
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name}: {_brief(old)} → {_brief(new)}"


def _brief(value: object) -> str:
    text = str(value)
    return f"{text[:_SHORT_DIGEST]}…" if text.startswith("sha256:") else text


def _others(kind: Kind, names: list[str], *, prune: bool) -> Iterator[Change]:
    for name in names:
        if prune:
            yield Change(kind, name, "removed", "not in the file")
        else:
            yield Change(kind, name, "left", "not in the file; --prune removes it")
