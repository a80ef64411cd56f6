"""What every Kafka client of ours shares: how to connect, what a record is, and our errors for the library's."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from contracts.errors import InvalidRequest, TransportError
from contracts.settings import KafkaSettings

MAX_REQUEST_BYTES = 1024 * 1024
STOP_SECONDS = 5.0

if TYPE_CHECKING:

    class Partition(NamedTuple):
        """A partition of a topic; the library's own class, which has no types."""

        topic: str
        partition: int

else:
    Partition = TopicPartition


class Record(Protocol):
    """A record as it was read; `timestamp` is in Unix milliseconds, `timestamp_type` 1 where the broker set it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


Outgoing = tuple[bytes | None, Sequence[tuple[str, bytes]]] | tuple[bytes | None, Sequence[tuple[str, bytes]], bytes]
"""A record's value and headers, and its key if it has one, on their way out."""


class Ack(NamedTuple):
    """Where an acknowledged record stands."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class OffsetOutOfRange(TransportError):
    """A fetch position lies outside its partition's log."""

    def __init__(self, partitions: Iterable[Partition]) -> None:
        self.partitions = tuple(partitions)
        super().__init__(
            f"fetch position outside the log of {', '.join(f'{p.topic}/{p.partition}' for p in partitions)}"
        )


class UnreadableRecord(TransportError):
    """A record can never be read: a header name that is no text, a codec that is not installed, a malformed batch.

    What was taken of other partitions in the same poll is lost to the caller: seek back before polling again.
    """


class GroupHasMembers(TransportError):
    """A commit was refused because somebody joined the commit group."""


class AckUnknown(TransportError):
    """No acknowledgement came in time: the records may be in the log or still get there, and the producer is sound."""


class TopicMissing(TransportError):
    """A topic does not exist, or may not be used by us."""


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """What every aiokafka client needs to connect."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap,
        "security_protocol": settings.security_protocol,
        "request_timeout_ms": int(settings.request_timeout_seconds * 1000),
        "metadata_max_age_ms": 30_000,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.ca_file or None)
    if settings.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return options


def translate(exc: BaseException, doing: str) -> TransportError | InvalidRequest:
    """Our error for one of Kafka's; the most specific first."""
    if isinstance(exc, (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordTooLargeError)):
        return InvalidRequest(f"{doing}: the record is larger than the broker accepts ({exc})")
    if isinstance(exc, (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.TopicAuthorizationFailedError)):
        return TopicMissing(f"{doing}: topic unknown or forbidden ({exc})")
    if isinstance(exc, (kafka_errors.CommitFailedError, kafka_errors.UnknownMemberIdError)):
        return GroupHasMembers(f"{doing}: the commit group has members")
    return TransportError(f"{doing}: {type(exc).__name__}: {exc}")


FAILURES = (kafka_errors.KafkaError, OSError, asyncio.TimeoutError)
