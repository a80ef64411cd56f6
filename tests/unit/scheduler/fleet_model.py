"""A pool in memory that obeys the rules of the scripts, and workers that do what they are told, one step at a time.

It fails the test when a plan asks for something that the pool would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import structs

from contracts import topics
from contracts.names import ModelVersion
from contracts.pool import (
    Device,
    Lease,
    LeaseState,
    Node,
    NodeState,
    PoolState,
    Refusal,
    TopicAssignments,
    admission,
    cpu_device_id,
)
from contracts.specs import DeploymentSpec
from scheduler.actions import Action, Commit, Drain, Evict, Hold, Want
from scheduler.planner import plan
from scheduler.snapshot import Backoff, Limits, Snapshot, Wanted

NOW = 1_700_000_000_000
FOR_EVER = NOW + 10**9


def gpu(name: str, node: str = "n1", *, memory_mib: int = 140_000, slots: int = 4, **fields: Any) -> Device:
    return Device(
        id=f"GPU-{name}", node=node, kind="gpu", name="H200", memory_mib=memory_mib, compute_cap=100,
        lease_slots=slots, **fields,
    )  # fmt: skip


def cpu(node: str = "n1", *, cores: int = 4, memory_mib: int = 16_000, **fields: Any) -> Device:
    return Device(
        id=cpu_device_id(node), node=node, kind="cpu", name=f"{cores} cores", memory_mib=memory_mib,
        compute_cap=100 * cores, lease_slots=16 * cores, **fields,
    )  # fmt: skip


def node(name: str = "n1", state: NodeState = "ready") -> Node:
    return Node(id=name, incarnation=1, state=state, host=name, heartbeat_unix_ms=NOW)


def spec(name: str = "digits@2", workers: tuple[int, int] = (1, 8), **device: Any) -> DeploymentSpec:
    key = ModelVersion.parse(name)
    return DeploymentSpec.model_validate(
        {
            "model": key.model,
            "version": key.version,
            "workers": {"min": workers[0], "max": workers[1]},
            "device": {"kind": "cpu", **device},
        }
    )


def lease(name: str, state: LeaseState = "active", *, deployment: str = "digits@2", **fields: Any) -> Lease:
    values: dict[str, Any] = {
        "token": int("".join(filter(str.isdigit, name)) or 0), "models": (deployment,), "tenant": "", "node": "n1",
        "mode": "cpu", "shares": (), "expires_unix_ms": FOR_EVER, "created_unix_ms": NOW,
    }  # fmt: skip
    return Lease(id=name, deployment=deployment, state=state, **(values | fields))


def topic_of(deployment: str) -> str:
    key = ModelVersion.parse(deployment)
    return topics.requests(topics.DEFAULT_PREFIX, key.model, key.version)


def joins_of(deployment: str) -> str:
    key = ModelVersion.parse(deployment)
    return topics.joins(topics.DEFAULT_PREFIX, key.model, key.version)


def serious(actions: Iterable[Action]) -> list[Action]:
    """What there is to be carried out."""
    return [action for action in actions if isinstance(action, Commit | Want | Evict | Drain | Hold)]


class FleetModel:
    """Nodes, devices, leases and partitions; every method is one thing that may happen."""

    def __init__(
        self,
        devices: Iterable[Device],
        demand: Mapping[str, DeploymentSpec],
        limits: Limits | None = None,
        joins: Mapping[str, int] | None = None,
    ) -> None:
        """`joins`: which of the deployments are pipelines, with the partitions of their joins topics."""
        self.joins = joins or {}
        self.devices = {device.id: device for device in devices}
        self.nodes = {device.node: node(device.node) for device in self.devices.values()}
        self.demand = {name: Wanted(wanted, joins=self.joins.get(name, 0)) for name, wanted in demand.items()}
        self.partitions = {topic_of(name): wanted.partitions for name, wanted in demand.items()}
        self.partitions |= {joins_of(name): count for name, count in self.joins.items()}
        self.leases: dict[str, Lease] = {}
        self.want: dict[tuple[str, int], str] = {}
        self.own: dict[tuple[str, int], str] = {}
        self.since: dict[tuple[str, int], int] = {}
        self.draining_since: dict[str, int] = {}
        self.backoff: dict[str, Backoff] = {}
        self.limits = limits or Limits()
        self.now = NOW
        self.last_token = 0

    def scale(self, name: str, workers: int | None) -> None:
        self.demand[name] = structs.replace(
            self.demand[name], demand=structs.replace(self.demand[name].demand, manual=workers)
        )

    def snapshot(self) -> Snapshot:
        known = {topic for topic, _ in [*self.want, *self.own, *self.since]}
        assignments = {
            topic: TopicAssignments(
                topic=topic,
                want={p: name for (t, p), name in self.want.items() if t == topic},
                own={p: (name, self.leases[name].token) for (t, p), name in self.own.items() if t == topic},
                unsettled_since={p: since for (t, p), since in self.since.items() if t == topic},
            )
            for topic in sorted(known)
        }
        pool = PoolState(
            nodes=dict(self.nodes), devices=dict(self.devices), leases=dict(self.leases), topics=assignments,
            now_unix_ms=self.now,
        )  # fmt: skip
        return Snapshot(
            pool=pool, partitions=self.partitions, backoff=self.backoff, draining_since=self.draining_since,
            limits=self.limits,
        )  # fmt: skip

    def plan(self) -> list[Action]:
        return plan(self.snapshot(), self.demand, self.now)

    def tick(self, milliseconds: int = 200) -> list[Action]:
        """Time passes, a plan is made and carried out."""
        self.now += milliseconds
        actions = self.plan()
        self.apply(actions)
        return actions

    def apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Commit():
                    self._commit(action)
                case Want():
                    self._want(action)
                case Evict():
                    for partition in action.partitions:
                        self._evict((action.topic, partition))
                case Drain():
                    self.drain(action.lease)
                case Hold():
                    assert not [held for held in self.leases.values() if held.node == action.node]
                    self.nodes[action.node] = structs.replace(self.nodes[action.node], state=action.state)

    def _commit(self, action: Commit) -> None:
        assert self.nodes[action.node].state == "ready"
        assert action.lease not in self.leases
        for share in action.shares:
            device = self.devices[share.device]
            refusal: Refusal | None = admission(device, share, action.mode)
            assert refusal is None, refusal
            assert action.gens[device.id] == device.gen
            self._count(device.id, share.memory_mib, share.compute, 1, action.mode)
        self.last_token += 1
        self.leases[action.lease] = Lease(
            id=action.lease, token=self.last_token, deployment=action.deployment, models=action.models,
            tenant=action.tenant, node=action.node, mode=action.mode, shares=action.shares, state="reserved",
            expires_unix_ms=FOR_EVER, created_unix_ms=self.now,
        )  # fmt: skip

    def _count(self, device_id: str, memory_mib: int, compute: int, leases: int, mode: Any) -> None:
        device = self.devices[device_id]
        count = device.lease_count + leases
        after = structs.replace(
            device, memory_used_mib=device.memory_used_mib + memory_mib, compute_used=device.compute_used + compute,
            lease_count=count, mode=mode if count else "free",
        )  # fmt: skip
        assert 0 <= after.memory_used_mib <= after.memory_mib
        assert 0 <= after.compute_used <= after.compute_cap
        assert 0 <= after.lease_count <= after.lease_slots
        self.devices[device_id] = after

    def _want(self, action: Want) -> None:
        for partition, name in action.wants.items():
            key = (action.topic, partition)
            if name is None:
                self.want.pop(key, None)
            else:
                assert self.leases[name].state == "active", f"{name} is {self.leases[name].state}"
                assert partition < self.partitions.get(action.topic, 0) or key in self.own or key in self.since
                self.want[key] = name
            self._settle(key)

    def _settle(self, key: tuple[str, int]) -> None:
        if self.want.get(key) == self.own.get(key):
            self.since.pop(key, None)
        else:
            self.since.setdefault(key, self.now)

    def _evict(self, key: tuple[str, int]) -> None:
        assert self.own[key] != self.want.get(key)
        assert self.now - self.since[key] > self.limits.handover_ms
        del self.own[key]
        self._settle(key)

    def drain(self, name: str) -> None:
        """The planner's drain: a lease that has not started ends at once."""
        state = self.leases[name].state
        assert state in ("reserved", "active")
        if state == "reserved":
            self.end(name)
        else:
            self._clear_wants(name)
            self.leases[name] = structs.replace(self.leases[name], state="draining")

    def _clear_wants(self, name: str) -> None:
        for key in [key for key, wanted in self.want.items() if wanted == name]:
            del self.want[key]
            self.since.setdefault(key, self.now)

    def bind(self, name: str) -> None:
        """The worker has loaded its model."""
        assert self.leases[name].state == "reserved"
        self.leases[name] = structs.replace(self.leases[name], state="active")

    def end(self, name: str) -> None:
        """The lease ends, by release or because its worker died."""
        for key in [key for key, owner in self.own.items() if owner == name]:
            del self.own[key]
            self._settle(key)
        self._clear_wants(name)
        self.leases[name] = structs.replace(self.leases[name], state="quarantine", expires_unix_ms=0)

    def confirm(self, name: str) -> None:
        """The agent has seen the processes gone."""
        gone = self.leases.pop(name)
        for share in gone.shares:
            self._count(share.device, -share.memory_mib, -share.compute, -1, self.devices[share.device].mode)

    def work(self, name: str) -> None:
        """One turn of a worker or its agent: whatever it has to do next."""
        held = self.leases[name]
        mine = [key for key, owner in self.own.items() if owner == name]
        if held.state == "reserved":
            self.bind(name)
        elif held.state == "quarantine":
            self.confirm(name)
        elif held.state == "draining" and not mine:
            self.end(name)
        else:
            self._reconcile(name, mine if held.state == "draining" else [k for k in mine if self.want.get(k) != name])

    def _reconcile(self, name: str, lost: list[tuple[str, int]]) -> None:
        for key in lost:
            del self.own[key]
            self._settle(key)
        for key in [key for key, wanted in self.want.items() if wanted == name and key not in self.own]:
            self.own[key] = name
            self._settle(key)

    def settle(self, rounds: int = 60) -> None:
        """Everybody does what there is to do until nothing changes any more."""
        for _ in range(rounds):
            before = (dict(self.leases), dict(self.own), dict(self.want), dict(self.nodes))
            self.tick()
            for name in list(self.leases):
                self.work(name)
            if before == (self.leases, self.own, self.want, self.nodes):
                return
        msg = "the fleet does not come to rest"
        raise AssertionError(msg)

    def states(self, deployment: str) -> dict[str, int]:
        """How many leases of a deployment are in each state."""
        found: dict[str, int] = {}
        for held in self.leases.values():
            if held.deployment == deployment:
                found[held.state] = found.get(held.state, 0) + 1
        return found

    def loads(self, deployment: str) -> list[int]:
        """How many partitions of its request topic each active worker of a deployment owns, fewest first."""
        return self._loads(deployment, topic_of(deployment))

    def join_loads(self, deployment: str) -> list[int]:
        """The same for the joins topic of a pipeline."""
        return self._loads(deployment, joins_of(deployment))

    def _loads(self, deployment: str, topic: str) -> list[int]:
        active = [held.id for held in self.leases.values() if held.deployment == deployment and held.state == "active"]
        return sorted(sum(1 for key, owner in self.own.items() if owner == name and key[0] == topic) for name in active)
