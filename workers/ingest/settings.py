"""Settings of a worker."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from contracts.retries import DELAYS_SECONDS
from contracts.settings import BlobSettings, HeadraceSettings, LeaseSettings, register_settings
from workers.draining.settings import DrainGroup


class WorkerGroup(DrainGroup):
    """How a worker drains, commits and stops."""

    watchdog_seconds: Annotated[float, Field(gt=0)] = 5.0
    """An engine whose batch runs longer than this, and ten times longer than recent ones, is killed."""
    watchdog_unmeasured_seconds: Annotated[float, Field(gt=0)] = 60.0
    """The same while it is not known yet how long the model's batches take."""
    engine_memory_mib: Annotated[int | None, Field(ge=64)] = None
    """An engine whose resident memory exceeds this is replaced between two batches; unset, only the kernel's limit
    holds. For models that leak."""
    retry_delays_seconds: tuple[float, float, float] = DELAYS_SECONDS
    """Before the second, third and fourth attempt of a request that failed for a reason that passes."""


@register_settings
class WorkerSettings(HeadraceSettings):
    """Everything that a worker reads."""

    lease: LeaseSettings = LeaseSettings()
    worker: WorkerGroup = WorkerGroup()
    blobs: BlobSettings = BlobSettings()
