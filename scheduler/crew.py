"""Who of a deployment's workers stays, who leaves, and who gets the partitions meanwhile.

Make before break: a leaving worker keeps its partitions until a staying one is active and can take them. So scaling up
moves partitions only to workers that are loaded and warm; a node that is drained serves on until its replacements do,
and so does a worker that holds other models than its deployment names now. Workers that have not started yet leave
first, then those with the fewest partitions, then the newest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from contracts.pool import Lease, NodeState
from scheduler.drained import serves
from scheduler.snapshot import Snapshot

_emptying: frozenset[NodeState] = frozenset({"draining", "cordoned"})


class Crew(Struct, frozen=True, kw_only=True):
    """The workers of one deployment. Everything is in a fixed order, so that equal states give equal plans."""

    deployment: str
    topics: tuple[str, ...]
    """What its workers drain: the requests of its models; a pipeline's submissions and its parts."""
    wanted: int
    models: tuple[str, ...] | None = None
    """What its workers should hold; None when it is gone."""
    starting: tuple[Lease, ...] = ()
    """Reserved, to stay."""
    serving: tuple[Lease, ...] = ()
    """Active, to stay."""
    leaving: tuple[Lease, ...] = ()
    """Reserved or active, but too many, on a node that is being emptied, or with models that changed."""
    keepers: tuple[Lease, ...] = ()
    """Active; the partitions are divided among these."""

    def keepers_of(self, topic: str, snapshot: Snapshot) -> tuple[Lease, ...]:
        """Those among which the partitions of one topic are divided; a worker may lack a model that is new."""
        return tuple(lease for lease in self.keepers if serves(snapshot, lease, topic))

    @property
    def missing(self) -> int:
        """How many workers still have to be started."""
        return max(0, self.wanted - len(self.starting) - len(self.serving))


class Muster(Struct, frozen=True):
    """What is wanted of a deployment's workers."""

    topics: tuple[str, ...]
    wanted: int
    models: tuple[str, ...] | None
    """What they should hold; None for a deployment that is gone."""


def muster(snapshot: Snapshot, deployment: str, call: Muster, leases: Sequence[Lease], now: int) -> Crew:
    """Look over the leases of a deployment."""
    topics, wanted = call.topics, call.wanted
    load: Counter[str] = Counter()
    for topic in topics:
        known = snapshot.pool.topics.get(topic)
        load.update(known.want.values() if known else ())
    ranked = sorted(
        (lease for lease in leases if lease.state in ("reserved", "active")),
        key=lambda lease: (lease.state != "active", -load[lease.id], lease.token, lease.id),
    )
    uprooted = [lease for lease in ranked if _is_outdated(lease, call) or _is_emptying(snapshot, lease.node)]
    rooted = [lease for lease in ranked if lease not in uprooted]
    staying = rooted[:wanted]
    serving = [lease for lease in staying if lease.state == "active"]
    keepers = [lease for lease in serving if lease.expires_unix_ms > now]
    patient = [
        lease
        for lease in uprooted
        if lease.state == "active" and lease.expires_unix_ms > now and _has_grace(snapshot, lease.node, now)
    ]
    keepers += patient[: max(0, wanted - len(keepers))]
    return Crew(
        deployment=deployment,
        topics=topics,
        wanted=wanted,
        models=call.models,
        starting=tuple(lease for lease in staying if lease.state == "reserved"),
        serving=tuple(serving),
        leaving=tuple(rooted[wanted:] + uprooted),
        keepers=tuple(sorted(keepers, key=lambda lease: (lease.token, lease.id))),
    )


def _is_outdated(lease: Lease, call: Muster) -> bool:
    """Whether a worker holds other models than it should: it serves on until those that hold them are ready."""
    return call.models is not None and lease.models != call.models


def _is_emptying(snapshot: Snapshot, node: str) -> bool:
    known = snapshot.pool.nodes.get(node)
    return known is not None and (known.state in _emptying or known.hold in _emptying)


def _has_grace(snapshot: Snapshot, node: str, now: int) -> bool:
    return now - snapshot.draining_since.get(node, now) <= snapshot.limits.node_grace_ms
