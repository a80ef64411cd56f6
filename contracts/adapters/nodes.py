"""Nodes and devices in the pool: what agents report, and the whole pool as one snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import msgspec
from msgspec import Struct

from contracts import keys
from contracts.adapters.redis import Argument, RedisDoor, pairs, refusal_of, script
from contracts.names import check_name
from contracts.pool import (
    Device,
    DeviceKind,
    DeviceReport,
    Event,
    Health,
    Lease,
    LeaseState,
    Mode,
    Node,
    NodeReport,
    NodeState,
    PoolState,
    Refusal,
    Registration,
    Share,
    TopicAssignments,
)

_Flat = list[str]
_to_json = msgspec.json.Encoder().encode
_strings = msgspec.json.Decoder(dict[str, str])
_numbers = msgspec.json.Decoder(dict[str, float])


class _RawHeartbeat(Struct, array_like=True):
    code: str
    leases: list[tuple[str, str, _Flat]]


class _RawState(Struct, array_like=True):
    now: str
    epoch: str
    event_id: str
    nodes: list[tuple[str, str, _Flat]]
    devices: list[tuple[str, _Flat]]
    leases: list[tuple[str, str, _Flat]]
    topics: list[tuple[str, _Flat, _Flat, _Flat]]


class Nodes:
    """The part of the pool that agents keep: registration, heartbeats, health. Refusals are returned, never raised."""

    def __init__(self, redis: RedisDoor, pool: str = "default") -> None:
        self._redis = redis
        self.pool = check_name(pool, "pool name")
        self._root = keys.pool(redis.prefix, pool)

    async def register_node(self, report: NodeReport, devices: Sequence[DeviceReport]) -> Registration | Refusal:
        """Take charge of a node. An agent that registered it earlier is fenced off from here on.

        A dead node becomes ready again (or what an operator had asked of it). A device that is not named any more is
        lost and its leases end; one whose counters or health changed gets a new gen.
        """
        check_name(report.id, "node name")
        args: list[Argument] = [report.id, report.host, report.boot_id, report.cores, report.memory_mib]
        args.append(_to_json(report.labels))
        for device in devices:
            args += [device.id, device.kind, device.name, device.memory_mib, device.compute_cap, device.lease_slots]
            args += [device.health, _to_json(device.labels)]
        reply = await self._call("node_register", *args)
        return refusal_of(reply) or Registration(incarnation=int(reply[1]), epoch=int(reply[2]))

    async def heartbeat(
        self, node: str, incarnation: int, stats: Mapping[str, float] | None = None
    ) -> list[Lease] | Refusal:
        """Say that the node lives; get every lease of it that is not deleted, so that the agent can reconcile.

        Refusals: FENCED, another agent registered; DEAD or GONE, end all workers and register again.
        """
        args = (node, incarnation, _to_json(dict(stats or {})))
        reply = await self._redis.call_packed(script("node_heartbeat"), [self._root], args, _RawHeartbeat)
        return refusal_of([reply.code]) or [_lease(*raw) for raw in reply.leases]

    async def expire_nodes(self, *, suspect_ms: int, dead_ms: int) -> list[tuple[str, NodeState]]:
        """Judge silent nodes; the leases of a dead one end. Returns those that changed."""
        _, *changed = await self._call("node_expire", suspect_ms, dead_ms)
        return [(node, cast("NodeState", state)) for node, state in pairs(changed).items()]

    async def set_node_state(self, node: str, state: NodeState) -> Refusal | None:
        """Ask for ready, draining or cordoned (only after draining); kept when the agent restarts. GONE or NO."""
        return refusal_of(await self._call("node_state", node, state))

    async def forget_node(self, node: str) -> Refusal | None:
        """Remove a dead node without leases, and its devices. GONE or NO."""
        return refusal_of(await self._call("node_forget", node))

    async def set_device_health(self, node: str, incarnation: int, device: str, health: Health) -> Refusal | None:
        """Say how a device is; the leases of a lost one end. GONE, FENCED or PLACE."""
        return refusal_of(await self._call("device_health", node, incarnation, device, health))

    async def state(self) -> PoolState:
        """The whole pool at one moment, in one round trip."""
        raw = await self._redis.call_packed(script("pool_state"), [self._root], [], _RawState)
        return PoolState(
            nodes={node[0]: _node(*node) for node in raw.nodes},
            devices={device[0]: _device(*device) for device in raw.devices},
            leases={lease[0]: _lease(*lease) for lease in raw.leases},
            topics={topic[0]: _topic(*topic) for topic in raw.topics},
            now_unix_ms=int(raw.now),
            epoch=int(raw.epoch),
            event_id=raw.event_id,
        )

    async def events(self, last_id: str, block_ms: int) -> tuple[str, list[Event]]:
        """Changes after `last_id`, waiting up to `block_ms` for the first one.

        Start with `PoolState.event_id` to miss nothing, or with "$" for what happens from now on; go on with the id
        that is returned.
        """
        stream = f"{self._root}:ev"
        if last_id == "$":
            last_id = await self._redis.last_id(stream)
        entries = await self._redis.read_stream(stream, last_id, block_ms=block_ms)
        return (entries[-1].id if entries else last_id), [_event(*entry) for entry in entries]

    async def _call(self, operation: str, *args: Argument) -> list[str]:
        return await self._redis.call(script(operation), [self._root], args)


def _node(name: str, heartbeat: str, flat: _Flat) -> Node:
    known = pairs(flat)
    return Node(
        id=name,
        incarnation=int(known["inc"]),
        state=cast("NodeState", known["state"]),
        host=known["host"],
        heartbeat_unix_ms=int(float(heartbeat)),
        boot_id=known["boot_id"],
        cores=int(known["cores"]),
        memory_mib=int(known["ram"]),
        hold=known["hold"],
        labels=_strings.decode(known["labels"]),
        stats=_numbers.decode(known.get("stats", "{}")),
    )


def _device(name: str, flat: _Flat) -> Device:
    known = pairs(flat)
    return Device(
        id=name,
        node=known["node"],
        kind=cast("DeviceKind", known["kind"]),
        name=known["name"],
        memory_mib=int(known["mem_cap"]),
        memory_used_mib=int(known["mem_used"]),
        compute_cap=int(known["compute_cap"]),
        compute_used=int(known["compute_used"]),
        lease_slots=int(known["lease_slots"]),
        lease_count=int(known["nlease"]),
        mask=int(known["mask"]),
        mode=cast("Mode", known["mode"]),
        gen=int(known["gen"]),
        health=cast("Health", known["health"]),
        labels=_strings.decode(known["labels"]),
    )


def _lease(name: str, expires: str, flat: _Flat) -> Lease:
    known = pairs(flat)
    revoke, ended = known.get("revoke_at"), known.get("ended")
    return Lease(
        id=name,
        token=int(known["tok"]),
        deployment=known["deployment"],
        models=tuple(known["models"].split(",")) if known["models"] else (),
        tenant=known["tenant"],
        node=known["node"],
        mode=cast("Mode", known["mode"]),
        shares=tuple(_share(part) for part in known["devs"].split(";") if part),
        state=cast("LeaseState", known["state"]),
        expires_unix_ms=int(float(expires)),
        created_unix_ms=int(known["t0"]),
        revoke_unix_ms=int(revoke) if revoke else None,
        ended_unix_ms=int(ended) if ended else None,
        reason=known.get("reason", ""),
        bound=_strings.decode(known.get("bound", "{}")),
    )


def _share(part: str) -> Share:
    device, memory, compute, mask = part.split(",")
    return Share(device, int(memory), int(compute), int(mask))


def _topic(name: str, want: _Flat, own: _Flat, since: _Flat) -> TopicAssignments:
    return TopicAssignments(
        topic=name,
        want={int(partition): lease for partition, lease in pairs(want).items()},
        own={int(partition): _owner(owner) for partition, owner in pairs(own).items()},
        unsettled_since={int(partition): int(moment) for partition, moment in pairs(since).items()},
    )


def _owner(text: str) -> tuple[str, int]:
    lease, _, token = text.partition(",")
    return lease, int(token)


def _event(entry_id: str, fields: Mapping[str, str]) -> Event:
    return Event(
        id=entry_id,
        kind=fields["kind"],
        lease=fields.get("lease", ""),
        node=fields.get("node", ""),
        topic=fields.get("topic", ""),
        partitions=tuple(int(number) for number in fields.get("partitions", "").split(",") if number),
        detail=fields.get("detail", ""),
    )
