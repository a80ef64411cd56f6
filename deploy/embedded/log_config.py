"""What can be set for a topic: Kafka's names, Kafka's defaults, and nothing that would be accepted but not done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kio.schema.errors import ErrorCode

from deploy.embedded.log_wire import LogError

_STRING, _INT, _LONG, _LIST = 2, 3, 5, 7  # Kafka's numbers for the types in DescribeConfigs


class Setting(NamedTuple):
    """A setting's default, its type, and what it may be: one of some words, or a number that is not too small."""

    default: str
    kind: int
    words: tuple[str, ...] = ()
    least: int = 0


SETTINGS: Mapping[str, Setting] = {
    "cleanup.policy": Setting("delete", _LIST, words=("delete",)),
    "compression.type": Setting("producer", _STRING, words=("producer", "uncompressed")),
    "max.message.bytes": Setting("1048588", _INT),
    "message.timestamp.type": Setting("CreateTime", _STRING, words=("CreateTime", "LogAppendTime")),
    "min.insync.replicas": Setting("1", _INT, least=1),
    "retention.bytes": Setting("-1", _LONG, least=-1),
    "retention.ms": Setting("604800000", _LONG, least=-1),
    "segment.bytes": Setting("33554432", _INT, least=1 << 20),  # less than Kafka's 1 GiB: retention drops whole files
}


@dataclass(frozen=True)
class TopicConfig:
    """A topic's settings: what was set, and what that means."""

    overrides: Mapping[str, str]
    log_append_time: bool
    takes_compressed: bool
    max_message_bytes: int
    min_insync_replicas: int
    retention_bytes: int
    retention_ms: int
    segment_bytes: int


def parse_config(overrides: Mapping[str, str | None]) -> TopicConfig:
    """Raise LogError for a name or value that this log does not do; null is the default."""
    given = {name: value for name, value in overrides.items() if value is not None}
    for name, value in given.items():
        if name not in SETTINGS:
            raise LogError(ErrorCode.invalid_config, f"there is no setting {name}, only {', '.join(SETTINGS)}")
        words, least = SETTINGS[name].words, SETTINGS[name].least
        if value not in words if words else not _is_at_least(least, value):
            wanted = " or ".join(words) or f"a whole number, {least} or more"
            raise LogError(ErrorCode.invalid_config, f"{name}={value}: this log does {wanted}")
    values = {name: given.get(name, setting.default) for name, setting in SETTINGS.items()}
    log_append_time = values["message.timestamp.type"] == "LogAppendTime"
    takes_compressed = values["compression.type"] == "producer"
    numbers = {name.replace(".", "_"): int(value) for name, value in values.items() if not SETTINGS[name].words}
    return TopicConfig(given, log_append_time, takes_compressed, **numbers)


def _is_at_least(least: int, value: str) -> bool:
    try:
        return int(value) >= least
    except ValueError:
        return False
