"""`headrace scale`: say by hand how many workers a deployment has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.settings import HeadraceSettings

AUTO = "auto"
_WAIT_SECONDS = 120.0


def scale(
    deployment: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A deployment, such as digits@2.")],
    workers: Annotated[str, typer.Argument(metavar="WORKERS|auto", help="How many, or auto: as its spec says again.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is so, at most 2 minutes later.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept beside the number.")] = "",
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Set the number of workers of a deployment by hand.

    It wins over everything else until given back with auto. Partitions move one by one to workers that are ready; no
    request is lost or fails.
    """
    from deploy.cli import connection

    count = _count(workers)
    connection.run(_scale(connection.load(data), deployment, count, reason, wait=wait, as_json=json))


def _count(workers: str) -> int | None:
    if workers == AUTO:
        return None
    if not workers.isdecimal():
        msg = f"{workers!r} is no number of workers: write one, or auto"
        raise ConfigurationError(msg)
    return int(workers)


async def _scale(
    settings: HeadraceSettings, name: str, count: int | None, reason: str, *, wait: bool, as_json: bool
) -> None:
    from contracts.names import ModelVersion
    from deploy.cli.connection import open_control
    from deploy.cli.output import print_json
    from deploy.cli.readiness import await_ready

    key = ModelVersion.parse(name)
    async with open_control(settings) as control:
        known = (await control.registry.snapshot()).served
        if key not in known:
            deployed = ", ".join(map(str, sorted(known))) or "nothing"
            msg = f"{key} is not deployed; deployed: {deployed}"
            raise ConfigurationError(msg)
        spec = known[key]
        key, name = spec.key, str(spec.key)  # models that share their workers are scaled together
        most = min(spec.workers.max, spec.partitions)
        if count is not None and count > most:
            msg = (
                f"{key} may have at most {_workers(most)}: raise `workers: {{max: …}}` in its fleet file and apply it "
                "before you scale it further"
            )
            raise ConfigurationError(msg)
        before = (await control.registry.demand()).get(key)
        await control.registry.set_manual(key, count, reason)
        if not as_json:
            print(_said(name, count, before.manual if before else None, spec.workers.min))
        if wait:
            await await_ready(control, [name], _WAIT_SECONDS)
        if as_json:
            print_json({"deployment": name, "workers": count, "auto": count is None})


def _said(name: str, count: int | None, before: int | None, least: int) -> str:
    was = f"{before} by hand" if before is not None else f"{least} as its spec says"
    if count is None:
        return f"{name}: as its spec says again, at least {least} (was {was})"
    return f"{name}: {_workers(count)} by hand (was {was}); `headrace scale {name} auto` gives it back"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
