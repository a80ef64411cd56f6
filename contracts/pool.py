"""The pool as values: nodes, devices, leases and partition assignments, and the rule that admits a lease.

A device is a set of counters (memory, compute, lease slots, MIG memory slices) and a lease subtracts from all of
them. One physical device has one mode at a time. The scripts in `contracts/adapters/lua` decide; `admission` is the
same rule over these values, so that a planner proposes only what a script will accept.

A lease that ended is in quarantine: its partitions are free at once, because a repeated execution collapses at the
client, but its device capacity stays taken until the node agent has seen the processes gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import Struct, field

DeviceKind = Literal["gpu", "mig", "cpu"]
Mode = Literal["free", "whole", "slice", "mps", "mig", "cpu", "none"]
Health = Literal["ok", "degraded", "unhealthy", "faulted", "lost"]
NodeState = Literal["ready", "suspect", "draining", "cordoned", "dead"]
LeaseState = Literal["reserved", "active", "draining", "quarantine"]
Code = Literal[
    "MODE", "FULL", "PLACE", "QUOTA", "STALE", "TERM", "GONE", "UNAVAIL", "DEAD", "FENCED", "EXPIRED",
    "DRAINING", "OWNED", "NOT_WANTED", "NO",
]  # fmt: skip
"""Why the pool says no. FENCED: the token is not the current one; GONE: not there any more; NO: not in this state."""

PartitionKey = tuple[str, int]
"""A topic and a partition number."""

USABLE_HEALTH: frozenset[str] = frozenset({"ok", "degraded"})
SLOTS_PER_GPU = 4  # separate engines on one GPU cost 10 to 20 % in context switches; sharing one engine is better
SLOTS_PER_CORE = 16
COMPUTE_PER_GPU = 100
COMPUTE_PER_CORE = 100


class Refusal(Struct, frozen=True):
    """A business refusal; nothing was changed."""

    code: Code
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


class DeviceReport(Struct, frozen=True, kw_only=True):
    """A device as its node's agent found it."""

    id: str
    kind: DeviceKind
    name: str
    memory_mib: int
    compute_cap: int
    lease_slots: int
    health: Health = "ok"
    labels: dict[str, str] = field(default_factory=dict)


class NodeReport(Struct, frozen=True, kw_only=True):
    """A machine as its agent found it."""

    id: str
    host: str
    boot_id: str = ""
    cores: int
    memory_mib: int
    labels: dict[str, str] = field(default_factory=dict)


class Registration(Struct, frozen=True):
    """The agent's right to speak for its node, until a later agent registers."""

    incarnation: int
    epoch: int


class Device(Struct, frozen=True, kw_only=True):
    """One device and what is taken of it. `compute` is percent of a GPU or of one CPU core."""

    id: str
    node: str
    kind: DeviceKind
    name: str
    memory_mib: int
    memory_used_mib: int = 0
    compute_cap: int
    compute_used: int = 0
    lease_slots: int
    lease_count: int = 0
    mask: int = 0
    mode: Mode = "free"
    gen: int = 1
    health: Health = "ok"
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def memory_free_mib(self) -> int:
        """Memory that no lease holds."""
        return self.memory_mib - self.memory_used_mib

    @property
    def compute_free(self) -> int:
        """Compute that no lease holds."""
        return self.compute_cap - self.compute_used


class Node(Struct, frozen=True, kw_only=True):
    """One machine. `hold` is what an operator asked for (draining, cordoned or nothing); it survives restarts."""

    id: str
    incarnation: int
    state: NodeState
    host: str
    heartbeat_unix_ms: int
    boot_id: str = ""
    cores: int = 0
    memory_mib: int = 0
    hold: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)


class Share(Struct, frozen=True):
    """Part of one device."""

    device: str
    memory_mib: int
    compute: int
    mask: int = 0

    def __post_init__(self) -> None:
        if min(self.memory_mib, self.compute, self.mask) < 0:
            raise ValueError(f"a share cannot be negative: {self}")


class Lease(Struct, frozen=True, kw_only=True):
    """The right of one worker to its device shares. `expires_unix_ms` is 0 in quarantine."""

    id: str
    token: int
    deployment: str
    models: tuple[str, ...]
    tenant: str
    node: str
    mode: Mode
    shares: tuple[Share, ...]
    state: LeaseState
    expires_unix_ms: int
    created_unix_ms: int
    revoke_unix_ms: int | None = None
    ended_unix_ms: int | None = None
    reason: str = ""
    bound: dict[str, str] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether the lease has not ended."""
        return self.state != "quarantine"


class TopicAssignments(Struct, frozen=True, kw_only=True):
    """Who should drain and who drains the partitions of one topic.

    `unsettled_since` tells for each partition not held by the lease that is wanted since when (server ms) that is so.
    """

    topic: str
    want: dict[int, str] = field(default_factory=dict)
    own: dict[int, tuple[str, int]] = field(default_factory=dict)
    unsettled_since: dict[int, int] = field(default_factory=dict)

    def is_settled(self, partition: int) -> bool:
        """Whether the lease that is wanted holds the partition."""
        owner = self.own.get(partition)
        return owner is not None and owner[0] == self.want.get(partition)

    def wanted_by(self, lease: str) -> tuple[int, ...]:
        """The partitions that this lease should hold, in order."""
        return tuple(sorted(p for p, wanted in self.want.items() if wanted == lease))

    def owned_by(self, lease: str) -> tuple[int, ...]:
        """The partitions that this lease holds, in order."""
        return tuple(sorted(p for p, (owner, _) in self.own.items() if owner == lease))

    def overdue(self, now_unix_ms: int, limit_ms: int) -> tuple[int, ...]:
        """Partitions whose owner was to let go more than `limit_ms` ago."""
        return tuple(
            sorted(
                p
                for p, (owner, _) in self.own.items()
                if owner != self.want.get(p) and now_unix_ms - self.unsettled_since.get(p, now_unix_ms) > limit_ms
            )
        )


class PoolState(Struct, frozen=True, kw_only=True):
    """Everything in the pool at one moment of the server's clock. Following events after `event_id` misses nothing."""

    nodes: dict[str, Node] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    topics: dict[str, TopicAssignments] = field(default_factory=dict)
    now_unix_ms: int = 0
    epoch: int = 0
    event_id: str = "0-0"

    def leases_of(self, deployment: str) -> tuple[Lease, ...]:
        """The live leases of a deployment, oldest first."""
        found = (lease for lease in self.leases.values() if lease.deployment == deployment and lease.is_live)
        return tuple(sorted(found, key=lambda lease: lease.token))

    def devices_of(self, node: str) -> tuple[Device, ...]:
        """The devices of a node, by id."""
        return tuple(sorted((d for d in self.devices.values() if d.node == node), key=lambda d: d.id))


class Grant(Struct, frozen=True):
    """A lease was granted, or had been: the same id gets the same answer."""

    lease: str
    token: int
    expires_unix_ms: int


class Renewal(Struct, frozen=True, kw_only=True):
    """What a holder learns when it renews.

    `expires_in_ms` is what is left of the lease by the server's clock: the ttl asked for, less when it is being
    revoked or has not started. `wanted` is all it should drain; `lost` what it still owns and should give back.
    """

    state: LeaseState
    expires_in_ms: int
    wanted: tuple[PartitionKey, ...] = ()
    lost: tuple[PartitionKey, ...] = ()
    revoke_unix_ms: int | None = None
    now_unix_ms: int = 0


class LeaderGrant(Struct, frozen=True):
    """Leadership of the pool's planning under one term."""

    term: int
    expires_unix_ms: int
    epoch: int


class Claimed(Struct, frozen=True):
    """Which partitions a claim got, and why it did not get the others."""

    granted: tuple[int, ...] = ()
    refused: dict[int, Code] = field(default_factory=dict)


class Event(Struct, frozen=True, kw_only=True):
    """One change of the pool. Fields that do not apply are empty; `detail` is for people."""

    id: str
    kind: str
    lease: str = ""
    node: str = ""
    topic: str = ""
    partitions: tuple[int, ...] = ()
    detail: str = ""


class Demand(Struct, frozen=True, kw_only=True):
    """What was asked of a deployment apart from its spec. `manual` workers win over everything else."""

    manual: int | None = None
    reason: str = ""
    since_unix_ms: int = 0


def cpu_device_id(node: str, numa: int = 0) -> str:
    """The id of the CPU cores of a node."""
    return f"CPU-{node}-{numa}"


def cpu_report(node: str, cores: int, memory_mib: int, numa: int = 0) -> DeviceReport:
    """The cores of a node as a device: compute is percent of one core, so two cores are 200."""
    return DeviceReport(
        id=cpu_device_id(node, numa),
        kind="cpu",
        name=f"{cores} cores",
        memory_mib=memory_mib,
        compute_cap=cores * COMPUTE_PER_CORE,
        lease_slots=cores * SLOTS_PER_CORE,
    )


def admission(device: Device, share: Share, mode: Mode) -> Refusal | None:
    """Why `device` cannot give `share` in `mode` now, or None when it can. The node's state is not looked at."""
    if device.health not in USABLE_HEALTH:
        return Refusal("UNAVAIL", f"{device.id} is {device.health}")
    if mode in ("free", "none") or (mode == "cpu") != (device.kind == "cpu"):
        return Refusal("PLACE", f"{device.id} is a {device.kind}")
    if device.mode not in ("free", mode) or (mode == "whole" and device.lease_count):
        return Refusal("MODE", f"{device.id} is in mode {device.mode}")
    if device.mode == "whole" and device.lease_count:
        return Refusal("MODE", f"{device.id} is taken whole")
    if device.mask & share.mask:
        return Refusal("PLACE", f"{device.id} has these memory slices taken")
    return _counters(device, share)


def _counters(device: Device, share: Share) -> Refusal | None:
    if device.lease_count >= device.lease_slots:
        return Refusal("FULL", f"{device.id} has no lease slot left of {device.lease_slots}")
    if share.memory_mib > device.memory_free_mib:
        return Refusal("FULL", f"{device.id} has {device.memory_free_mib} MiB left of {device.memory_mib}")
    if share.compute > device.compute_free:
        return Refusal("FULL", f"{device.id} has {device.compute_free} % compute left of {device.compute_cap}")
    return None


def partition_name(key: PartitionKey) -> str:
    """`topic/partition`, as a lease's sets in Redis name it."""
    return f"{key[0]}/{key[1]}"


def parse_partitions(names: Iterable[str]) -> Iterator[PartitionKey]:
    """The inverse of `partition_name`, in order of topic and number."""
    pairs = (name.rpartition("/") for name in names)
    yield from sorted((topic, int(number)) for topic, _, number in pairs)
