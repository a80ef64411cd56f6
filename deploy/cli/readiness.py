"""Waiting until deployments have the workers that they should have. Whether they do is decided from the status view."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from deploy.cli.errors import NotReady

if TYPE_CHECKING:
    from deploy.cli.connection import ControlPlane

Deployment = Mapping[str, Any]
_POLL_SECONDS = 0.1


def is_ready(deployment: Deployment) -> bool:
    """Whether a deployment has exactly the wanted workers, all loaded, and each has its part of the partitions."""
    if deployment["active"] != deployment["wanted"] or deployment["starting"] or deployment["draining"]:
        return False
    if not deployment["wanted"]:
        return True
    workers = [worker for worker in deployment["workers"] if worker["state"] == "active"]
    topics = [deployment, *deployment.get("others", ()), *([deployment["joins"]] if deployment.get("joins") else [])]
    fair = sum(topic["partitions"] // len(workers) for topic in topics) if workers else 0
    return all(topic["partitions"] > 0 and not topic["unowned"] for topic in topics) and all(
        worker["owned"] == worker["wanted"] >= fair for worker in workers
    )


def progress(deployment: Deployment) -> str:
    """How far a deployment is, in a few words."""
    active, wanted = deployment["active"], deployment["wanted"]
    text = f"{deployment['name']}: {active} of {wanted} workers ready"
    if active > wanted:
        text = f"{deployment['name']}: {active} workers, {wanted} wanted"
    if deployment["starting"]:
        text += f", {deployment['starting']} starting"
    if deployment["draining"]:
        return f"{text}, {deployment['draining']} finishing"
    if deployment["waiting"]:
        return f"{text}; {deployment['waiting']['explanation']}"
    if active >= wanted and not is_ready(deployment):
        return f"{text}, partitions are handed over"
    return text


async def await_ready(
    control: ControlPlane,
    names: Collection[str],
    seconds: float,
    *,
    say: Callable[[str], None] | None = None,
) -> None:
    """Return when these deployments are ready; each step is said once. Raises NotReady with what is missing."""
    from deploy.cli.output import say as to_stderr
    from scheduler.view import describe

    said: dict[str, str] = {}
    report = say or to_stderr
    until = asyncio.get_running_loop().time() + seconds
    while True:
        seen = await control.look()
        found = {known["name"]: known for known in describe(seen.snapshot, seen.demand)["deployments"]}
        late = [name for name in names if name not in found or not is_ready(found[name])]
        for name in names:
            text = progress(found[name]) if name in found else f"{name}: not deployed"
            if said.get(name) != text:
                said[name] = text
                report(text)
        if not late:
            return
        if asyncio.get_running_loop().time() >= until:
            lines = "; ".join(said[name] for name in late)
            msg = f"not ready within {seconds:g} s: {lines} (`headrace status` shows how it goes on)"
            raise NotReady(msg)
        await asyncio.sleep(_POLL_SECONDS)
