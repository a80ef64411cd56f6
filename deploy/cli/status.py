"""`headrace status`: what runs, what waits and why, and what is free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from rich.console import RenderableType

    from contracts.settings import HeadraceSettings
    from deploy.cli.connection import ControlPlane
    from deploy.cli.lag import Lags

_WATCH_SECONDS = 1.0
View = dict[str, Any]
_words = {"reserved": "starting", "quarantine": "ending"}  # what the states of a lease mean to an operator


def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again each second until Ctrl-C.")] = False,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Show what runs, what waits and why, and what is free."""
    from deploy.cli import connection

    connection.run(_status(connection.load(data), watch=watch, as_json=json))


async def _status(settings: HeadraceSettings, *, watch: bool, as_json: bool) -> None:
    import asyncio

    from deploy.cli.connection import open_control
    from deploy.cli.lag import Lags
    from deploy.cli.output import console, print_json

    lags = Lags(settings.kafka)
    try:
        async with open_control(settings) as control:
            if watch and not as_json:
                await _watch(control, lags)
                return
            while True:
                view = await read_view(control, lags)
                if as_json:
                    print_json(view)
                else:
                    console().print(render(view))
                if not watch:
                    return
                await asyncio.sleep(_WATCH_SECONDS)
    finally:
        await lags.close()


async def _watch(control: ControlPlane, lags: Lags) -> None:
    import asyncio

    from rich.live import Live

    from deploy.cli.output import console

    shown = console()
    with Live(console=shown, auto_refresh=False, screen=shown.is_terminal and not shown.is_dumb_terminal) as live:
        while True:
            live.update(render(await read_view(control, lags)), refresh=True)
            await asyncio.sleep(_WATCH_SECONDS)


async def read_view(control: ControlPlane, lags: Lags) -> View:
    """The scheduler's own view of the pool, with `lag` added to each deployment, each of its further models, and each
    lane of those.
    """
    from contracts.names import ModelVersion
    from scheduler.view import describe

    seen = await control.look()
    view = describe(seen.snapshot, seen.demand)
    deployments = view["deployments"]
    known = {ModelVersion.parse(deployment["name"]): deployment for deployment in deployments}
    for deployment in deployments:
        known |= zip(map(ModelVersion.parse, deployment["models"][1:]), deployment["others"], strict=False)
    found = await lags.read({key: topic["partitions"] for key, topic in known.items()})
    for key, topic in known.items():
        topic["lag"] = found[key]
    lanes = {(key, priority): lane for key, topic in known.items() for priority, lane in topic["lanes"].items()}
    waiting = await lags.read_lanes({key: lane["partitions"] for key, lane in lanes.items()})
    for lane_key, lane in lanes.items():
        lane["lag"] = waiting[lane_key]
    joining = {ModelVersion.parse(one["name"]): one["joins"] for one in deployments if one["joins"]}
    open_parts = await lags.read_joins({key: topic["partitions"] for key, topic in joining.items()})
    for key, topic in joining.items():
        topic["lag"] = open_parts[key]
    return view


def render(view: View) -> RenderableType:
    """The view as tables."""
    from rich.console import Group

    from deploy.cli.output import table

    deployments = view["deployments"]
    parts: list[RenderableType] = []
    if deployments:
        heads = ["deployment", ">workers", "min-max", ">partitions", ">waiting", "state"]
        parts.append(table(*heads, rows=[row for d in deployments for row in _deployment(d)]))
    else:
        parts.append("Nothing is deployed: headrace apply -f fleet.yaml\n")
    workers = [(deployment["name"], worker) for deployment in deployments for worker in deployment["workers"]]
    if workers:
        heads = ["worker", "deployment", "state", "node", "device", "partitions", ">age"]
        parts.append(table(*heads, rows=[_worker(name, worker) for name, worker in workers]))
    if view["nodes"]:
        heads = ["node", "state", "device", "health", ">workers", ">compute", ">memory MiB"]
        parts.append(table(*heads, rows=[row for node in view["nodes"] for row in _devices(node)]))
    else:
        parts.append("No node is registered: is an agent running?\n")
    return Group(*parts)


def _deployment(known: View) -> list[tuple[object, ...]]:
    """A row for the deployment, and one for each further model of its workers."""
    workers = f"{known['active']}/{known['wanted']}" + (" by hand" if known["by_hand"] else "")
    lag = _waiting(known)
    if known.get("joins"):
        parts = known["joins"].get("lag")
        lag = f"{lag}; {'?' if parts is None else parts} parts"
    bounds = f"{known['min']}-{known['max']}"
    rows: list[tuple[object, ...]] = [(known["name"], workers, bounds, known["partitions"], lag, _state(known))]
    for name, other in zip(known.get("models", ())[1:], known.get("others", ()), strict=False):
        lag = _waiting(other)
        rows.append((f"+ {name}", "", "", other["partitions"], lag, ""))
    return rows


def _waiting(known: View) -> str:
    """What waits in a request topic, and what of it besides in its lanes."""
    lanes = [f"{_count(lane['lag'])} {priority}" for priority, lane in known.get("lanes", {}).items()]
    return ", ".join([_count(known["lag"]), *lanes])


def _count(lag: int | None) -> str:
    return "?" if lag is None else str(lag)


def _state(known: View) -> str:
    if known["waiting"]:
        retry = known["waiting"]["retry_seconds"]
        again = "" if retry is None else f"; next try in {retry:.0f} s"
        return f"{known['waiting']['explanation']}{again}"
    if known["unowned_reason"]:
        return str(known["unowned_reason"])
    states = [f"{known[name]} {name}" for name in ("starting", "draining", "ending") if known[name]]
    if states:
        return ", ".join(states)
    if not known["is_deployed"]:
        return "removed"
    return "ready" if known["wanted"] else "no worker wanted"


def _worker(deployment: str, known: View) -> tuple[object, ...]:
    where = known["partitions"] or ("none" if known["state"] == "active" else "")
    if any(known.get("others", ())):
        where = " + ".join(part or "none" for part in (known["partitions"], *known["others"]))
    if known.get("joins"):
        where = f"{where}; joins {known['joins']}"
    state = _words.get(known["state"], known["state"])
    state = f"{state}: {known['reason']}" if known["reason"] else state
    devices = ", ".join(known["devices"])
    return known["lease"], deployment, state, known["node"], devices, where, _age(known["age_seconds"])


def _devices(node: View) -> list[tuple[object, ...]]:
    state = node["state"] + (f", silent for {node['silent_seconds']:.0f} s" if node["silent_seconds"] > 3 else "")  # noqa: PLR2004 - a heartbeat a second
    rows: list[tuple[object, ...]] = [
        (
            node["name"],
            state,
            f"{device['id']} ({device['name']})",
            device["health"],
            device["workers"],
            f"{device['compute'] - device['compute_free']}/{device['compute']} %",
            f"{device['memory_mib'] - device['memory_free_mib']}/{device['memory_mib']}",
        )
        for device in node["devices"]
    ]
    return rows or [(node["name"], state, "no device", "", "", "", "")]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
