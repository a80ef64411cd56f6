"""`headrace apply`: make the registry say what a fleet file says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contracts.adapters.registry import Registry
    from deploy.cli.changes import Change
    from deploy.cli.repository import FleetFile


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="The fleet file.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove deployments and routes that are not in the file.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Accept other files under a version that is registered already.")
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait until all workers are ready, at most this long.")
    ] = 0.0,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Register models, pipelines, deployments and routes of a file.

    What is not in the file is left as it is. Exit status 3 when workers are not ready within --wait seconds.
    """
    from deploy.cli import connection
    from deploy.cli.repository import read_fleet

    fleet = read_fleet(file)
    settings = connection.load(data)
    connection.run(_apply(settings, fleet, dry_run=dry_run, prune=prune, replace=replace, wait=wait, as_json=json))


async def _apply(
    settings: Any, fleet: FleetFile, *, dry_run: bool, prune: bool, replace: bool, wait: float, as_json: bool
) -> None:
    from deploy.cli.connection import open_control
    from deploy.cli.pipelines import with_deployments
    from deploy.cli.readiness import await_ready

    async with open_control(settings) as control:
        found = await plan_changes(control.registry, fleet, prune=prune, replace=replace)
        if not dry_run:
            await carry_out(control.registry, fleet, found)
        _show(found, dry_run=dry_run, as_json=as_json)
        if wait > 0 and not dry_run:
            await await_ready(
                control, [str(deployment.key) for deployment in with_deployments(fleet).deployments], wait
            )


async def plan_changes(
    registry: Registry, fleet: FleetFile, *, prune: bool = False, replace: bool = False
) -> list[Change]:
    """What applying the file would change now."""
    from deploy.cli.changes import changes
    from deploy.cli.pipelines import registrations, with_deployments

    models = {model.key: model for model in fleet.models}
    state = await registry.snapshot()
    pipelines = registrations(fleet, state, prune=prune, replace=replace)
    spec = with_deployments(fleet)
    return changes(spec, models, state, pipelines=pipelines, prune=prune, replace=replace)


async def carry_out(registry: Registry, fleet: FleetFile, found: Sequence[Change]) -> None:
    """Write what is to change, in the order of the list."""
    from contracts.names import ModelVersion

    models = {str(model.key): model for model in fleet.models}
    from deploy.cli.pipelines import registrations, with_deployments

    deployments = {str(deployment.key): deployment for deployment in with_deployments(fleet).deployments}
    pipelines = {str(key): one for key, one in registrations(fleet, await registry.snapshot(), replace=True).items()}
    for change in found:
        name = change.name
        match change.kind, change.change:
            case "model", "created" | "changed":
                await registry.put_models([models[name]])
            case "pipeline", "created" | "changed":
                await registry.put_pipeline(pipelines[name])
            case "deployment", "created" | "changed":
                await registry.put_deployment(deployments[name])
            case "route", "created" | "changed":
                await registry.put_route(name, fleet.spec.routes[name])
            case "route", "removed":
                await registry.delete_route(name)
            case "deployment", "removed":
                await registry.delete_deployment(ModelVersion.parse(name))
                await registry.delete_pipeline(ModelVersion.parse(name))


def _show(found: Sequence[Change], *, dry_run: bool, as_json: bool) -> None:
    from deploy.cli.output import console, print_json, table

    if as_json:
        changed = [
            {"kind": change.kind, "name": change.name, "change": change.change, "detail": change.detail}
            for change in found
        ]
        print_json({"dry_run": dry_run, "changes": changed})
        return
    marks = {"created": "+", "changed": "~", "removed": "-"}
    rows = [(marks.get(change.change, " "), change.kind, change.name, change.change, change.detail) for change in found]
    console().print(table("", "kind", "name", "change", "detail", rows=rows))
    if dry_run:
        print("Nothing was changed: this was a dry run.")
    replaced = [change.name for change in found if change.kind == "model" and change.change == "changed"]
    if replaced and not dry_run:
        print(
            f"Workers that run already keep the old files of {', '.join(replaced)}: "
            f"restart them with `headrace scale {replaced[0]} 0` and `headrace scale {replaced[0]} auto`."
        )
