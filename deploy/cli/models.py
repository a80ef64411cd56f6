"""`headrace models`: which model versions are registered, and what they take and give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.adapters.registry import RegistryState
    from contracts.settings import HeadraceSettings
    from contracts.specs import TensorSpec

_SHORT_DIGEST = 12


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only versions of this model or pipeline.")] = None,
    *,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """List the registered models and pipelines, and what they take."""
    from deploy.cli import connection

    connection.run(_models(connection.load(data), name, as_json=json))


async def _models(settings: HeadraceSettings, name: str | None, *, as_json: bool) -> None:
    from deploy.cli.connection import open_control
    from deploy.cli.output import console, print_json, table

    async with open_control(settings) as control:
        found = listed(await control.registry.snapshot(), name)
    if as_json:
        print_json({"models": found})
        return
    if name is not None and not found:
        msg = f"no version of {name} is registered: `headrace models` lists what is"
        raise ConfigurationError(msg)
    if not found:
        print("No model is registered: headrace apply -f fleet.yaml")
        return
    rows = [
        (
            f"{model['name']}@{model['version']}" + (" (default)" if model["is_default"] else ""),
            model["backend"],
            _signature(model["inputs"]),
            _signature(model["outputs"]),
            "yes" if model["is_deployed"] else "no",
            model["digest"].removeprefix("sha256:")[:_SHORT_DIGEST],
        )
        for model in found
    ]
    console().print(table("model", "backend", "inputs", "outputs", "deployed", "sha256", rows=rows))


def listed(state: RegistryState, name: str | None) -> list[dict[str, Any]]:
    """The registered versions as plain data, pipelines behind models."""
    from contracts.pipelines import PipelineSpec

    pipelines = {key: PipelineSpec.model_validate(one.spec) for key, one in state.pipelines.items()}
    served = state.served
    found: list[dict[str, Any]] = [
        {
            "name": key.model,
            "version": key.version,
            "backend": model.spec.backend,
            "description": model.spec.description,
            "inputs": [_tensor(tensor) for tensor in model.spec.inputs],
            "outputs": [_tensor(tensor) for tensor in model.spec.outputs],
            "is_deployed": key in served,
            "is_default": key.model in state.routes and state.routes[key.model].default == key.version,
            "digest": model.digest,
            "uri": model.uri,
        }
        for key, model in sorted(state.models.items())
        if name in (None, key.model)
    ]
    return found + [
        {
            "name": key.model,
            "version": key.version,
            "backend": "pipeline",
            "description": spec.description,
            "inputs": [_tensor(tensor) for tensor in spec.inputs],
            "outputs": [{"name": output, "datatype": None, "shape": None} for output in spec.outputs],
            "is_deployed": key in served,
            "is_default": key.model in state.routes and state.routes[key.model].default == key.version,
            "digest": "",
            "uri": "",
        }
        for key, spec in sorted(pipelines.items())
        if name in (None, key.model)
    ]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _signature(tensors: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{tensor['name']} {tensor['datatype']} {tensor['shape']}" if tensor["datatype"] else tensor["name"]
        for tensor in tensors
    )
