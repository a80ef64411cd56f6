"""Why a deployment has fewer workers than wanted, and why a partition waits, in words that say what to do.

Pure: the scheduler logs these sentences when something begins to wait, and the status command prints them.
"""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from contracts.pool import Code, PoolState
from contracts.specs import DeploymentSpec
from scheduler.actions import Wait, ranges
from scheduler.crew import Crew
from scheduler.filters import ask_of, refusal
from scheduler.snapshot import Demands, Snapshot


class Obstacle(Struct, frozen=True):
    """Why one device does not take a worker."""

    device: str
    code: Code
    detail: str


def obstacles(pool: PoolState, spec: DeploymentSpec) -> list[Obstacle]:
    """For each device that cannot take a worker of this deployment now, the first reason; by device."""
    ask = ask_of(spec)
    found = []
    for device in sorted(pool.devices.values(), key=lambda device: device.id):
        reason = refusal(pool.nodes.get(device.node), device, ask)
        if reason is not None:
            found.append(Obstacle(device.id, reason.code, reason.detail))
    return found


def why_waiting(snapshot: Snapshot, demand: Demands, wait: Wait) -> str:
    """One sentence on why workers are missing."""
    wanted = demand[wait.deployment]
    if wait.reason == "its model is not registered":
        names = " or ".join(wanted.models)
        return f"model {names} is not registered: apply the fleet file with its model folder again"
    if wait.reason == "recent starts failed":
        known = snapshot.backoff.get(wait.deployment)
        if known is not None:
            times = "start" if known.failures == 1 else f"{known.failures} starts in a row"
            return f"the last {times} failed ({known.reason or 'no reason given'}); see the worker's log on its node"
    if not snapshot.pool.devices:
        return "no device is registered: start an agent on a machine (headrace up, or python -m workers.agent)"
    found = obstacles(snapshot.pool, wanted.spec)
    kinds = Counter(_gist(obstacle) for obstacle in found)
    example = f", for example {found[0].detail}" if found else ""
    reasons = ", ".join(f"{count} {gist}" for gist, count in kinds.most_common())
    return f"no device takes {_needs(wanted.spec)} ({reasons}{example})"


def _needs(spec: DeploymentSpec) -> str:
    device = spec.device
    kind = "device" if device.kind == "any" else device.kind
    return f"{device.compute} % compute and {device.memory_mib} MiB of a {kind}"


_GISTS: dict[Code, str] = {
    "FULL": "full",
    "MODE": "in another mode",
    "PLACE": "of another kind",
    "UNAVAIL": "not usable",
}


def _gist(obstacle: Obstacle) -> str:
    return _GISTS.get(obstacle.code, obstacle.code)


def unowned(snapshot: Snapshot, crew: Crew, topic: str) -> tuple[int, ...]:
    """The partitions of a deployment's topic that nobody drains although somebody should."""
    if not crew.wanted:
        return ()
    known = snapshot.pool.topics.get(topic)
    own = known.own if known else {}
    return tuple(p for p in range(snapshot.partitions_of(topic)) if p not in own)


def why_unowned(snapshot: Snapshot, crew: Crew) -> str:
    """One sentence on why partitions wait; empty when none does."""
    waiting = [(topic, partitions) for topic in crew.topics if (partitions := unowned(snapshot, crew, topic))]
    if not waiting:
        return ""
    topic, partitions = waiting[0]
    known = snapshot.pool.topics.get(topic)
    wanted = {known.want[p] for p in partitions if p in known.want} if known else set()
    which = f"partitions {ranges(list(partitions))}" + (f" of {topic}" if len(crew.topics) > 1 else "")
    if wanted:
        return f"{which}: worker {', '.join(sorted(wanted))} is about to take them"
    if crew.keepers_of(topic, snapshot):
        return f"{which}: to be given out at the scheduler's next tick"
    if crew.starting:
        return f"{which}: the first worker is still loading its model"
    return f"{which}: there is no worker"
