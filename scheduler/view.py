"""The state of a fleet as plain data: what `headrace status` prints, and `--json` gives to scripts.

Pure, and true for anybody who can read Redis: it asks the planner itself what it would wait for, so the reasons shown
are the planner's own. Use `observe.look` for the input.
"""

from __future__ import annotations

from typing import Any

from contracts import topics
from contracts.pool import Device, Lease, Node
from scheduler.actions import Wait, ranges
from scheduler.crew import Crew
from scheduler.explain import unowned, why_unowned, why_waiting
from scheduler.planner import muster_all, plan
from scheduler.snapshot import Demands, Snapshot


def describe(snapshot: Snapshot, demand: Demands) -> dict[str, Any]:
    """Deployments with their workers and partitions, nodes with their devices, and reasons for what waits."""
    now = snapshot.pool.now_unix_ms
    waits = {action.deployment: action for action in plan(snapshot, demand, now) if isinstance(action, Wait)}
    crews = muster_all(snapshot, demand, now)
    return {
        "time_unix_ms": now,
        "deployments": [_deployment(snapshot, demand, crew, waits.get(crew.deployment)) for crew in crews],
        "nodes": [_node(snapshot, node) for _, node in sorted(snapshot.pool.nodes.items())],
    }


def _deployment(snapshot: Snapshot, demand: Demands, crew: Crew, wait: Wait | None) -> dict[str, Any]:
    leases = sorted(
        (lease for lease in snapshot.pool.leases.values() if lease.deployment == crew.deployment),
        key=lambda lease: lease.token,
    )
    wanted = demand.get(crew.deployment)
    requests, joins = _kinds(snapshot, crew)
    return {
        "name": crew.deployment,
        "kind": "pipeline" if joins or (wanted is not None and wanted.fused) else "model",
        "models": list(wanted.models) if wanted is not None else [],
        "is_deployed": wanted is not None,
        "wanted": crew.wanted,
        "by_hand": wanted is not None and wanted.demand.manual is not None,
        "min": wanted.spec.workers.min if wanted else 0,
        "max": wanted.spec.workers.max if wanted else 0,
        "active": len([lease for lease in leases if lease.state == "active"]),
        "starting": len([lease for lease in leases if lease.state == "reserved"]),
        "draining": len([lease for lease in leases if lease.state == "draining"]),
        "ending": len([lease for lease in leases if lease.state == "quarantine"]),
        "waiting": None if wait is None else _waiting(snapshot, demand, wait),
        **_topic(snapshot, crew, requests[0] if requests else ""),
        "others": [_topic(snapshot, crew, topic) for topic in requests[1:]],
        "joins": _topic(snapshot, crew, joins[0]) if joins else None,
        "unowned_reason": why_unowned(snapshot, crew),
        "workers": [_worker(snapshot, crew, lease) for lease in leases],
    }


def _kinds(snapshot: Snapshot, crew: Crew) -> tuple[list[str], list[str]]:
    """The topics of requests, without their lanes, and of a pipeline's parts."""
    joins = [topic for topic in crew.topics if topics.parse_joins(snapshot.prefix, topic) is not None]
    return [topic for topic in crew.topics if topic not in joins and topics.lane_of(topic) is None], joins


def _topic(snapshot: Snapshot, crew: Crew, topic: str) -> dict[str, Any]:
    lanes = {priority: topics.lane(topic, priority) for priority in topics.LANES}
    return {
        **_partitions(snapshot, crew, topic),
        "lanes": {lane: _partitions(snapshot, crew, name) for lane, name in lanes.items() if name in crew.topics},
    }


def _partitions(snapshot: Snapshot, crew: Crew, topic: str) -> dict[str, Any]:
    return {
        "topic": topic,
        "partitions": snapshot.partitions_of(topic),
        "unowned": list(unowned(snapshot, crew, topic)),
    }


def _waiting(snapshot: Snapshot, demand: Demands, wait: Wait) -> dict[str, Any]:
    retry = wait.retry_unix_ms
    return {
        "missing": wait.missing,
        "reason": wait.reason,
        "explanation": why_waiting(snapshot, demand, wait),
        "retry_seconds": None if retry is None else max(0, retry - snapshot.pool.now_unix_ms) / 1000,
    }


def _worker(snapshot: Snapshot, crew: Crew, lease: Lease) -> dict[str, Any]:
    known = [topic for name in crew.topics if (topic := snapshot.pool.topics.get(name)) is not None]
    owned = {topic.topic: topic.owned_by(lease.id) for topic in known}
    requests, joins = _kinds(snapshot, crew)
    now = snapshot.pool.now_unix_ms
    return {
        "lease": lease.id,
        "state": lease.state,
        "node": lease.node,
        "devices": [share.device for share in lease.shares],
        "partitions": ranges(owned.get(requests[0], ())) if requests else "",
        "others": [ranges(owned.get(topic, ())) for topic in requests[1:]],
        "joins": ranges(owned.get(joins[0], ())) if joins else None,
        "owned": sum(map(len, owned.values())),
        "wanted": sum(len(topic.wanted_by(lease.id)) for topic in known),
        "age_seconds": max(0, now - lease.created_unix_ms) / 1000,
        "expires_seconds": max(0, lease.expires_unix_ms - now) / 1000 if lease.is_live else None,
        "reason": lease.reason,
    }


def _node(snapshot: Snapshot, node: Node) -> dict[str, Any]:
    return {
        "name": node.id,
        "state": node.state,
        "hold": node.hold,
        "host": node.host,
        "silent_seconds": max(0, snapshot.pool.now_unix_ms - node.heartbeat_unix_ms) / 1000,
        "devices": [_device(device) for device in snapshot.pool.devices_of(node.id)],
    }


def _device(device: Device) -> dict[str, Any]:
    return {
        "id": device.id,
        "kind": device.kind,
        "name": device.name,
        "health": device.health,
        "mode": device.mode,
        "workers": device.lease_count,
        "memory_mib": device.memory_mib,
        "memory_free_mib": device.memory_free_mib,
        "compute": device.compute_cap,
        "compute_free": device.compute_free,
    }
