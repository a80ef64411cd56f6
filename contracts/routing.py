"""Which version answers: a pure function of the route table and what the caller asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from contracts.errors import ModelNotFound
from contracts.names import ModelVersion
from contracts.specs import RouteSpec


def labelled(model: str, label: str, routes: Mapping[str, RouteSpec]) -> int:
    """The version that a label of a model's route stands for. Raises ModelNotFound."""
    labels = routes[model].labels if model in routes else {}
    if label not in labels:
        have = f"its labels are {', '.join(sorted(labels))}" if labels else "its route has no labels"
        msg = f"{model} has no label {label!r}; {have}"
        raise ModelNotFound(msg)
    return labels[label]


def pin(
    model: str,
    version: int | None,
    *,
    routes: Mapping[str, RouteSpec],
    deployed: Collection[ModelVersion],
) -> ModelVersion:
    """Pin a request to a version: the one it names, else the route's default, else the only one deployed.

    Raises ModelNotFound when that version is not deployed, or when none is named and several could be meant.
    """
    known = sorted(key.version for key in deployed if key.model == model)
    if version is not None:
        wanted = ModelVersion(model, version)
    elif model in routes:
        wanted = ModelVersion(model, routes[model].default)
    elif len(known) == 1:
        wanted = ModelVersion(model, known[0])
    elif known:
        msg = (
            f"{model} has versions {known} and no default route; name one, or add `routes: {{{model}: {{default: …}}}}`"
        )
        raise ModelNotFound(msg)
    else:
        msg = f"no version of {model} is deployed; deployed: {', '.join(map(str, sorted(deployed))) or 'nothing'}"
        raise ModelNotFound(msg)
    if wanted not in deployed:
        have = f"versions {known} are" if known else "no version of it is"
        msg = f"{wanted} is not deployed; {have}"
        raise ModelNotFound(msg)
    return wanted
