"""What the planner looks at: frozen values, taken at one moment of the pool's clock.

The pool's state comes from Redis in one read. What Redis does not hold (how many partitions a topic really has, which
deployments failed to start, since when a node drains) is the scheduler's own memory; a new leader starts without it and
is merely less patient or less wary for a while.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from contracts import topics
from contracts.errors import ConfigurationError
from contracts.names import ModelVersion
from contracts.pool import Demand, PoolState
from contracts.specs import DeploymentSpec


class Limits(Struct, frozen=True, kw_only=True):
    """How long the planner is patient, in milliseconds."""

    handover_ms: int = 15_000
    node_grace_ms: int = 120_000
    """How long workers on a draining node keep their partitions while too few others are ready."""


class Wanted(Struct, frozen=True):
    """A deployment and what was asked of it by hand."""

    spec: DeploymentSpec
    demand: Demand = Demand()
    is_registered: bool = True
    """Whether the registry knows the model version; without it no worker could load anything."""
    joins: int = 0
    """Of a pipeline: how many partitions its joins topic has. Its workers hold no model and need no engine."""
    fused: tuple[str, ...] = ()
    """Of a fused pipeline: the models of its plan, which its workers hold."""

    @property
    def is_pipeline(self) -> bool:
        """Whether it runs the jobs of a pipeline, fused or not."""
        return bool(self.joins or self.fused)

    @property
    def models(self) -> tuple[str, ...]:
        """What a worker's engine loads."""
        return () if self.joins else self.fused or tuple(map(str, self.spec.keys))

    @property
    def workers(self) -> int:
        """How many it should have: by hand if set, else the least; never above its maximum or its partitions."""
        spec = self.spec
        asked = spec.workers.min if self.demand.manual is None else self.demand.manual
        return max(0, min(asked, spec.workers.max, spec.partitions))


class Backoff(Struct, frozen=True):
    """A deployment whose recent starts failed: how often in a row, and when the next try is due."""

    failures: int
    retry_unix_ms: int
    reason: str = ""


class Snapshot(Struct, frozen=True, kw_only=True):
    """All that the planner decides on, apart from the demand."""

    pool: PoolState
    prefix: str = topics.DEFAULT_PREFIX
    partitions: Mapping[str, int] = field(default_factory=dict)
    """Topics that exist, with their partitions."""
    backoff: Mapping[str, Backoff] = field(default_factory=dict)
    draining_since: Mapping[str, int] = field(default_factory=dict)
    """Nodes that an operator drains, with the time (unix ms) since when."""
    limits: Limits = Limits()
    salt: str = ""
    """Keeps the lease ids of two pools apart that share a machine."""

    def partitions_of(self, topic: str) -> int:
        """How many partitions of a topic can be given out.

        What is given out already exists, whether or not Kafka could be asked since this scheduler started.
        """
        known = self.pool.topics.get(topic)
        given = 0 if known is None else max([*known.want, *known.own, *known.unsettled_since], default=-1) + 1
        return max(self.partitions.get(topic, 0), given)


def is_deployment(name: str) -> bool:
    """Whether a name is that of a deployment; a pool may hold leases for other things."""
    try:
        return bool(ModelVersion.parse(name))
    except ConfigurationError:
        return False


Demands = Mapping[str, Wanted]
"""What should run, by deployment (`name@version`)."""
