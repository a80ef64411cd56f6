"""Settings of a worker."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from contracts.retries import DELAYS_SECONDS
from contracts.settings import Group, HeadraceSettings, LeaseSettings, register_settings


class WorkerGroup(Group):
    """How a worker drains, commits and stops."""

    commit_interval_ms: Annotated[int, Field(ge=10, le=10_000)] = 250
    """Time between offset commits; what was answered since the last one is done again after a kill -9."""
    max_unanswered: Annotated[int, Field(ge=16)] = 2000
    """Records of one partition taken beyond its first unanswered one, at most; then the partition waits."""
    poll_records: Annotated[int, Field(ge=1)] = 512
    """Records taken from Kafka in one go, at most."""
    handover_drain_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long a partition that moves away may finish what is running."""
    handover_commit_seconds: Annotated[float, Field(gt=0)] = 3.0
    """How long its last commit may take; together they stay below lease.handover_seconds."""
    drain_seconds: Annotated[float, Field(gt=0)] = 25.0
    """How long a stopping worker may finish what is running; below a pod's termination grace period."""
    watchdog_seconds: Annotated[float, Field(gt=0)] = 5.0
    """An engine whose batch runs longer than this, and ten times longer than recent ones, is killed."""
    watchdog_unmeasured_seconds: Annotated[float, Field(gt=0)] = 60.0
    """The same while it is not known yet how long the model's batches take."""
    engine_memory_mib: Annotated[int | None, Field(ge=64)] = None
    """An engine whose resident memory exceeds this is replaced between two batches; unset, only the kernel's limit
    holds. For models that leak."""
    retry_delays_seconds: tuple[float, float, float] = DELAYS_SECONDS
    """Before the second, third and fourth attempt of a request that failed for a reason that passes."""
    metrics_port: Annotated[int | None, Field(ge=0, le=65535)] = None
    """Serve /metrics on this loopback port (0: any free one); unset serves none."""


@register_settings
class WorkerSettings(HeadraceSettings):
    """Everything that a worker reads."""

    lease: LeaseSettings = LeaseSettings()
    worker: WorkerGroup = WorkerGroup()
