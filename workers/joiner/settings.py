"""Settings of a joiner."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from contracts.settings import BlobSettings, HeadraceSettings, LeaseSettings, register_settings
from workers.draining.settings import DrainGroup


class JoinerGroup(DrainGroup):
    """How a joiner drains a pipeline's topics, and what it may hold."""

    max_held_mib: Annotated[int, Field(ge=1)] = 64
    """What waiting parts and remembered joins take up in one partition, at most; beyond, jobs that begin are answered
    OVERLOADED."""


@register_settings
class JoinerSettings(HeadraceSettings):
    """Everything that a joiner reads."""

    lease: LeaseSettings = LeaseSettings()
    joiner: JoinerGroup = JoinerGroup()
    blobs: BlobSettings = BlobSettings()
