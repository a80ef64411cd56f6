"""`headrace drain`: empty a node without losing a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import ConfigurationError
from deploy.cli.errors import NotReady
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.settings import HeadraceSettings
    from deploy.cli.connection import ControlPlane

_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.2


def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="As `headrace status` names it.")],
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take workers again.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove a node that is gone for good, and is dead, from the pool.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when nothing runs there any more, at most 5 minutes.")
    ] = False,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Move all workers off a node, then keep new ones away from it.

    Its workers serve on until their replacements elsewhere are ready.
    """
    from deploy.cli import connection

    settings = connection.load(data)
    if forget:
        connection.run(_forget(settings, node, as_json=json))
    else:
        connection.run(_drain(settings, node, undo=undo, wait=wait, as_json=json))


async def _forget(settings: HeadraceSettings, node: str, *, as_json: bool) -> None:
    from deploy.cli.connection import open_control
    from deploy.cli.output import print_json

    async with open_control(settings) as control:
        refusal = await control.leases.forget_node(node)
    if refusal is not None:
        known = "there is no such node" if refusal.code == "GONE" else refusal.detail
        msg = f"node {node} cannot be forgotten: {known}"
        raise ConfigurationError(msg)
    if as_json:
        print_json({"node": node, "state": "forgotten"})
    else:
        print(f"{node}: forgotten, with its devices")


async def _drain(settings: HeadraceSettings, node: str, *, undo: bool, wait: bool, as_json: bool) -> None:
    from deploy.cli.connection import open_control
    from deploy.cli.output import print_json

    async with open_control(settings) as control:
        known = (await control.leases.state()).nodes
        if node not in known:
            msg = f"there is no node {node}; there is {', '.join(sorted(known)) or 'none at all'}"
            raise ConfigurationError(msg)
        refusal = await control.leases.set_node_state(node, "ready" if undo else "draining")
        if refusal is not None:
            msg = f"node {node} is {known[node].state} and cannot be {'used' if undo else 'drained'}: {refusal}"
            raise ConfigurationError(msg)
        if not as_json:
            print(f"{node}: {'takes workers again' if undo else 'draining; headrace status shows how far it is'}")
        if wait and not undo:
            await _await_empty(control, node)
        if as_json:
            print_json({"node": node, "state": (await control.leases.state()).nodes[node].state})


async def _await_empty(control: ControlPlane, node: str) -> None:
    import asyncio

    until = asyncio.get_running_loop().time() + _WAIT_SECONDS
    while True:
        state = await control.leases.state()
        left = sum(1 for lease in state.leases.values() if lease.node == node)
        if not left:
            return
        if asyncio.get_running_loop().time() > until:
            msg = f"{left} workers are still on {node} after {_WAIT_SECONDS:.0f} s: is there room for them elsewhere?"
            raise NotReady(msg)
        await asyncio.sleep(_POLL_SECONDS)
