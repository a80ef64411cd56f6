"""Metrics of the scheduler, and of the pool as its leader sees it. A standby reports that it stands by and no more."""

from __future__ import annotations

from collections import Counter

from contracts.names import ModelVersion
from contracts.telemetry import counter, gauge, histogram
from scheduler.explain import unowned
from scheduler.planner import muster_all
from scheduler.snapshot import Demands, Snapshot

_plan_seconds = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)

LEADER = gauge("scheduler_leader", "1 while this process leads the pool.")
PLAN_SECONDS = histogram("scheduler_plan_seconds", "Time taken to make a plan.", buckets=_plan_seconds)
LOOP_FAILURES = counter("scheduler_failures", "Looks at the pool that failed.")
ACTIONS = counter("scheduler_actions", "Actions carried out.", "kind")
REFUSALS = counter("scheduler_refusals", "Actions that the pool refused, because it had changed.", "code")
START_FAILURES = gauge("scheduler_start_failures", "Starts in a row that failed.", "model", "version")
DESIRED = gauge("desired_workers", "Workers that a deployment should have.", "model", "version")
ACTIVE = gauge("active_workers", "Workers that a deployment has, ready to serve.", "model", "version")
UNOWNED = gauge(
    "partition_unowned_seconds", "Since when a partition has had no owner, the longest.", "model", "version"
)
CAPACITY = gauge(
    "pool_capacity", "What there is of a resource (compute in percent of a GPU or core).", "kind", "resource"
)
USED = gauge("pool_used", "What leases hold of a resource.", "kind", "resource")
LEASES = gauge("pool_leases", "Leases by state.", "state")
NODES = gauge("pool_nodes", "Nodes by state.", "state")
DEVICES = gauge("pool_device_health", "Devices by health.", "health")
QUARANTINE = gauge(
    "pool_quarantine_seconds", "Since when an ended lease has waited for its processes to go, the longest."
)
_of_pool = (START_FAILURES, DESIRED, ACTIVE, UNOWNED, CAPACITY, USED, LEASES, NODES, DEVICES)


class PoolMetrics:
    """Sets the gauges from what the leader sees; remembers since when partitions have had no owner."""

    def __init__(self) -> None:
        self._unowned_since: dict[tuple[str, int], int] = {}

    def show(self, snapshot: Snapshot, demand: Demands) -> None:
        """Report one look at the pool."""
        for metric in _of_pool:
            metric.clear()
        self._show_deployments(snapshot, demand)
        pool = snapshot.pool
        for device in pool.devices.values():
            for resource, capacity, used in (
                ("memory_mib", device.memory_mib, device.memory_used_mib),
                ("compute", device.compute_cap, device.compute_used),
            ):
                CAPACITY.labels(device.kind, resource).inc(capacity)
                USED.labels(device.kind, resource).inc(used)
        for state, count in Counter(lease.state for lease in pool.leases.values()).items():
            LEASES.labels(state).set(count)
        for state_of_node, count in Counter(node.state for node in pool.nodes.values()).items():
            NODES.labels(state_of_node).set(count)
        for health, count in Counter(device.health for device in pool.devices.values()).items():
            DEVICES.labels(health).set(count)
        ended = [lease.ended_unix_ms for lease in pool.leases.values() if lease.ended_unix_ms is not None]
        QUARANTINE.set(max(0, pool.now_unix_ms - min(ended)) / 1000 if ended else 0)

    def _show_deployments(self, snapshot: Snapshot, demand: Demands) -> None:
        now = snapshot.pool.now_unix_ms
        waiting: dict[tuple[str, int], int] = {}
        for crew in muster_all(snapshot, demand, now):
            labels = (str(part) for part in ModelVersion.parse(crew.deployment))
            model, version = labels
            DESIRED.labels(model, version).set(crew.wanted)
            ACTIVE.labels(model, version).set(len(crew.serving))
            failed = snapshot.backoff.get(crew.deployment)
            START_FAILURES.labels(model, version).set(failed.failures if failed else 0)
            longest = 0
            for topic in crew.topics:
                known = snapshot.pool.topics.get(topic)
                for partition in unowned(snapshot, crew, topic):
                    key = (topic, partition)
                    since = known.unsettled_since.get(partition, now) if known else now
                    waiting[key] = min(since, self._unowned_since.get(key, now))
                    longest = max(longest, now - waiting[key])
            UNOWNED.labels(model, version).set(longest / 1000)
        self._unowned_since = waiting

    def hide(self) -> None:
        """This process does not lead: what it last saw is not true any more."""
        self._unowned_since = {}
        for metric in _of_pool:
            metric.clear()
        QUARANTINE.set(0)
