"""What a client can be told; the environment's `HEADRACE_CLIENT__*` or the constructor's keywords."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.codec import MAX_INLINE_BYTES
from contracts.messages import MAX_TTL_MS
from contracts.names import NAME_PATTERN
from contracts.settings import Group, HeadraceSettings, register_settings


class InboxSettings(Group):
    """Where responses arrive."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")] = "default"
    """Names the reply topic; the instances of one service share it, each with a partition of its own."""
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Partitions of a reply topic that the client creates: how many clients can use it at once."""
    retention_ms: Annotated[int, Field(ge=60_000)] = 3_600_000
    """How long a reply topic that the client creates keeps responses."""
    ttl_seconds: Annotated[float, Field(gt=0)] = 15.0
    """The lease of the client's partition; renewed every third of it."""


class BehaviourSettings(Group):
    """How a client behaves."""

    max_in_flight: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Requests without a response at one time; one more raises Overloaded at once."""
    max_in_flight_bytes: Annotated[int, Field(ge=MAX_INLINE_BYTES)] = 64 * 1024 * 1024
    """Bytes of those requests: they are kept until answered, to be sent again when a broker loses them."""
    ttl_seconds: Annotated[float, Field(gt=0, le=MAX_TTL_MS / 1000)] = 30.0
    """Time to live of a request that does not name its own."""
    grace_seconds: Annotated[float, Field(ge=0)] = 2.0
    """The client answers DEADLINE_EXCEEDED itself this long after the ttl."""
    refresh_seconds: Annotated[float, Field(gt=0)] = 0.5
    """Time between looks at the registry for new models, deployments and routes."""
    run_records: Annotated[int, Field(ge=1, le=1024)] = 16
    """Consecutive requests that go to one partition, at most; longer runs make larger batches."""


@register_settings
class ClientSettings(HeadraceSettings):
    """Everything that a client service is told."""

    client: BehaviourSettings = BehaviourSettings()
    inbox: InboxSettings = InboxSettings()

    @model_validator(mode="after")
    def _grace_for_an_answer(self) -> Self:
        if self.client.ttl_seconds + self.client.grace_seconds > self.inbox.retention_ms / 1000:
            msg = (
                "inbox.retention_ms must be above client.ttl_seconds + client.grace_seconds, or responses vanish unread"
            )
            raise ValueError(msg)
        return self
