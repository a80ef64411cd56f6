"""Which topics belong to which deployment: each to one.

A deployment that is wanted has the request topics of its models, each followed by its lanes if there are any; a
pipeline also the topic of its parts. What is left over (leases of a deployment that is gone, or that held a model which
another deployment serves now, and partitions of models that nobody serves any more) has the topics that nobody else
has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contracts import topics
from contracts.names import ModelVersion
from contracts.pool import Lease
from scheduler.snapshot import Demands, Snapshot, Wanted, is_deployment


def drained(snapshot: Snapshot, demand: Demands, leases: Mapping[str, Sequence[Lease]]) -> dict[str, tuple[str, ...]]:
    """The topics of every deployment, wanted or left over, by its name."""
    found: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()

    def give(name: str, candidates: Sequence[str]) -> None:
        found[name] = tuple(topic for topic in candidates if topic not in taken)
        taken.update(candidates)

    for name in sorted(demand):
        give(name, _wanted_topics(snapshot, demand[name]))
    for name in sorted(name for name in leases if name not in found and is_deployment(name)):
        held = {model for lease in leases[name] for model in lease.models}
        give(name, [topic for key in (name, *sorted(held - {name})) for topic in _known_topics(snapshot, key)])
    for topic in sorted(snapshot.pool.topics.keys() - taken):
        key = topics.deployment_of(snapshot.prefix, topic)
        if key is not None and str(key) not in found:
            give(str(key), _known_topics(snapshot, str(key)))
    return found


def serves(snapshot: Snapshot, lease: Lease, topic: str) -> bool:
    """Whether a worker drains a topic: that of its deployment, of one of its models, or of a pipeline's parts."""
    return any(topics.without_lane(topic) in _of(snapshot, name) for name in (lease.deployment, *lease.models))


def _wanted_topics(snapshot: Snapshot, wanted: Wanted) -> list[str]:
    requests = [topic for key in wanted.spec.keys for topic in _with_lanes(snapshot, _of(snapshot, str(key))[0])]
    return [*requests, _of(snapshot, str(wanted.spec.key))[1]] if wanted.joins else requests


def _known_topics(snapshot: Snapshot, name: str) -> list[str]:
    requests, joins = _of(snapshot, name)
    found = _with_lanes(snapshot, requests)
    return [*found, joins] if joins in snapshot.partitions or joins in snapshot.pool.topics else found


def _with_lanes(snapshot: Snapshot, requests: str) -> list[str]:
    """A request topic and those of its lanes that exist, whether or not anybody asks for lanes now."""
    lanes = (topics.lane(requests, priority) for priority in topics.LANES)
    return [requests, *(lane for lane in lanes if snapshot.partitions_of(lane))]


def _of(snapshot: Snapshot, name: str) -> tuple[str, str]:
    key = ModelVersion.parse(name)
    return (
        topics.requests(snapshot.prefix, key.model, key.version),
        topics.joins(snapshot.prefix, key.model, key.version),
    )
