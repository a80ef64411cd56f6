"""Which devices may take a worker, and for each that may not, the reason: `explain` prints it.

The rule about counters and modes is the pool's own (`contracts.pool.admission`), so that what is planned is what the
commit script will accept. Here are added what a deployment asks for and the state of the node.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from contracts.pool import Device, DeviceKind, Mode, Node, Refusal, Share, admission
from contracts.specs import DeploymentSpec

_modes_by_kind: Mapping[str, Mode] = {"cpu": "cpu", "mig": "mig"}


class Ask(Struct, frozen=True):
    """What one worker of a deployment needs of a device, in the terms of the filters."""

    kinds: tuple[DeviceKind, ...]
    """Kinds of device that will do, the preferred ones first."""
    compute: int
    memory_mib: int
    is_whole: bool


def ask_of(spec: DeploymentSpec) -> Ask:
    """What a deployment asks for. With `fallback: cpu` a GPU worker may start on a CPU when no GPU has room."""
    device = spec.device
    kinds: tuple[DeviceKind, ...] = ("cpu",)
    if device.kind != "cpu":
        is_flexible = device.kind == "any" or device.fallback == "cpu"
        kinds = ("gpu", "mig", "cpu") if is_flexible else ("gpu", "mig")
    return Ask(kinds, device.compute, device.memory_mib, device.mode == "whole")


def grant_of(ask: Ask, device: Device) -> tuple[Share, Mode]:
    """The share that an ask takes of a device, and the mode the device then has. A whole device gives everything."""
    is_whole = ask.is_whole and device.kind != "cpu"
    share = Share(
        device.id,
        device.memory_mib if is_whole else ask.memory_mib,
        device.compute_cap if is_whole else ask.compute,
    )
    return share, _modes_by_kind.get(device.kind, "whole" if is_whole else "slice")


def refusal(node: Node | None, device: Device, ask: Ask) -> Refusal | None:
    """Why a device cannot take an ask now, or None when it can."""
    if device.kind not in ask.kinds:
        return Refusal("PLACE", f"{device.id} is a {device.kind}, wanted is {' or '.join(ask.kinds)}")
    if node is None or node.state != "ready":
        state = "unknown" if node is None else node.state
        undo = f", `headrace drain {device.node} --undo` opens it" if state in ("draining", "cordoned") else ""
        return Refusal("UNAVAIL", f"node {device.node} is {state}{undo}")
    share, mode = grant_of(ask, device)
    if ask.is_whole and share.memory_mib < ask.memory_mib:
        return Refusal("FULL", f"{device.id} has {device.memory_mib} MiB, wanted are {ask.memory_mib}")
    return admission(device, share, mode)
