"""Settings of the scheduler process."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.settings import BlobSettings, Group, HeadraceSettings, LeaseSettings, register_settings

Positive = Annotated[float, Field(gt=0)]


class PlanningSettings(Group):
    """When the scheduler looks, and how long it is patient."""

    tick_seconds: Positive = 0.2
    """Time between two looks at the pool while something is under way; a change wakes the scheduler earlier."""
    floor_seconds: Positive = 0.05
    """Least time between two plans, so that a burst of changes is one plan."""
    calm_seconds: Positive = 1.0
    """Time between two full looks while nothing is under way; expired leases are found every tick all the same."""
    leader_ttl_seconds: Positive = 6.0
    """A leader that was silent for this long is replaced by a standby."""
    leader_renew_seconds: Positive = 2.0
    """Time between renewals of leadership."""
    suspect_seconds: Positive = 3.0
    """A node that was silent for this long gets no new workers."""
    dead_seconds: Positive = 10.0
    """A node that was silent for this long is dead: its leases end and its partitions move."""
    node_grace_seconds: Positive = 120.0
    """Workers on a draining node keep their partitions for this long while too few others are ready."""
    drain_seconds: Positive = 60.0
    """A draining worker that is still there after this long is ended."""
    topic_check_seconds: Positive = 30.0
    """Time between two looks at whether the topics of the deployments still exist."""
    metrics_port: Annotated[int | None, Field(ge=0, le=65535)] = None
    """Port of /metrics on the loopback interface, 0 for a free one; none unless set."""

    @model_validator(mode="after")
    def _related(self) -> Self:
        if self.leader_ttl_seconds < 3 * self.leader_renew_seconds:
            msg = "leader_ttl_seconds must be at least three times leader_renew_seconds, or one lost renewal ends it"
            raise ValueError(msg)
        if self.dead_seconds < 3 * self.suspect_seconds:
            msg = "dead_seconds must be at least three times suspect_seconds, or a suspicion is soon a death"
            raise ValueError(msg)
        return self


@register_settings
class SchedulerSettings(HeadraceSettings):
    """All settings of the scheduler process."""

    lease: LeaseSettings = LeaseSettings()
    scheduler: PlanningSettings = PlanningSettings()
    blobs: BlobSettings = BlobSettings()
