"""Settings of everything that drains topics."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from contracts.settings import Group


class DrainGroup(Group):
    """How topics are drained, and how long stopping may take."""

    commit_interval_ms: Annotated[int, Field(ge=10, le=10_000)] = 250
    """Time between offset commits; what was answered since the last one is done again after a kill -9."""
    max_unanswered: Annotated[int, Field(ge=16)] = 2000
    """Records of one partition taken beyond its first unanswered one, at most; then the partition waits."""
    poll_records: Annotated[int, Field(ge=1)] = 512
    """Records taken from Kafka in one go, at most."""
    stuck_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A partition that is read but stands still for so long, although the log has more, gets a new connection."""
    handover_drain_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long a partition that moves away may finish what is running."""
    handover_commit_seconds: Annotated[float, Field(gt=0)] = 3.0
    """How long its last commit may take; together they stay below lease.handover_seconds."""
    drain_seconds: Annotated[float, Field(gt=0)] = 25.0
    """How long a stopping worker may finish what is running; below a pod's termination grace period."""
    metrics_port: Annotated[int | None, Field(ge=0, le=65535)] = None
    """Serve /metrics on this loopback port (0: any free one); unset serves none."""
