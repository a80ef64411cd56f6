"""The only door to aiokafka: settings in, our errors out, and the library's traps kept behind it."""

from contracts.adapters.kafka.admin import Admin
from contracts.adapters.kafka.connection import (
    MAX_REQUEST_BYTES,
    Ack,
    AckUnknown,
    GroupHasMembers,
    OffsetOutOfRange,
    Outgoing,
    Partition,
    Record,
    TopicMissing,
    UnreadableRecord,
    connection_options,
    translate,
)
from contracts.adapters.kafka.producer import Producer
from contracts.adapters.kafka.reader import Reader

__all__ = [
    "MAX_REQUEST_BYTES",
    "Ack",
    "AckUnknown",
    "Admin",
    "GroupHasMembers",
    "OffsetOutOfRange",
    "Outgoing",
    "Partition",
    "Producer",
    "Reader",
    "Record",
    "TopicMissing",
    "UnreadableRecord",
    "connection_options",
    "translate",
]
