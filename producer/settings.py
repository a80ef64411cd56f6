"""What a client can be told; the environment's `HEADRACE_CLIENT__*` or the constructor's keywords."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from contracts.codec import MAX_INLINE_BYTES
from contracts.messages import MAX_TTL_MS
from contracts.names import NAME_PATTERN
from contracts.settings import BlobSettings, Group, HeadraceSettings, load_settings, register_settings


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


class IdempotencySettings(Group):
    """What requests with an idempotency key rest on."""

    tenant: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")] = "default"
    """Keys are this tenant's own: the same key of another one is another key."""
    keep_seconds: Annotated[float, Field(ge=1)] = 86_400.0
    """How long a key and its response are remembered, from the first request on."""
    mark_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A submitter that has not been heard of for this long is taken to be gone, and its request over by who waits."""
    max_response_bytes: Annotated[int, Field(ge=0)] = 65_536
    """Larger responses are not kept in Redis: other processes run the request again."""

    @model_validator(mode="after")
    def _remembered_while_under_way(self) -> Self:
        if self.keep_seconds < self.mark_seconds:
            msg = "keep_seconds must be at least mark_seconds, or a key is forgotten while its request is under way"
            raise ValueError(msg)
        return self


class CacheSettings(Group):
    """The client's own memory of responses; for models that answer equal requests equally."""

    enabled: bool = False
    """Whether calls that do not say `cache=` use it."""
    ttl_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long a response is kept; 0 keeps none and leaves only `single_flight`."""
    max_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Bytes of the responses kept; the least recently used leave first."""
    single_flight: bool = True
    """Whether equal calls that use the cache at the same time share one request."""


@register_settings
class ClientSettings(HeadraceSettings):
    """Everything that a client service is told."""

    client: BehaviourSettings = BehaviourSettings()
    inbox: InboxSettings = InboxSettings()
    cache: CacheSettings = CacheSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    blobs: BlobSettings = BlobSettings()

    @model_validator(mode="after")
    def _grace_for_an_answer(self) -> Self:
        if self.client.ttl_seconds + self.client.grace_seconds > self.inbox.retention_ms / 1000:
            msg = (
                "inbox.retention_ms must be above client.ttl_seconds + client.grace_seconds, or responses vanish unread"
            )
            raise ValueError(msg)
        return self


def client_settings(
    bootstrap: str | None,
    redis: str | None,
    inbox: str | None,
    max_in_flight: int | None,
    blobs: str | None = None,
) -> ClientSettings:
    """Settings from the environment, with what was given in code above it."""
    groups: dict[str, dict[str, object]] = {
        "kafka": {"bootstrap": bootstrap},
        "redis": {"url": redis},
        "inbox": {"name": inbox},
        "client": {"max_in_flight": max_in_flight},
        "blobs": {"url": blobs},
    }
    given = {group: {name: v for name, v in fields.items() if v is not None} for group, fields in groups.items()}
    return load_settings(ClientSettings, None, **{group: fields for group, fields in given.items() if fields})
