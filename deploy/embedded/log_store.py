"""What the log remembers: topics with their partitions, committed offsets, the next producer id.

Records lie in the partitions' own files. All else is one dictionary in a journal: each change is a JSON line in one
write, so kill -9 costs at most a change that nobody was told of; a journal full of old lines is written anew beside the
old one and takes its place by rename. A topic's line is what makes it exist: folders without one are left from a
deletion that was cut short, and go at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kio.schema.errors import ErrorCode

from contracts.clock import Clock
from contracts.errors import ConfigurationError
from deploy.embedded.log_config import TopicConfig, parse_config
from deploy.embedded.log_partition import Partition
from deploy.embedded.log_wire import LogError

_MAX_PARTITIONS = 1000
_NAME = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")
_JOURNAL_SLACK_LINES = 20_000

Key = tuple[str | int, ...]


class Journal:
    """A dictionary that survives kill -9."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[Key, Any] = {}
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if line.endswith(b"\n"):  # or it is torn: its writer died before anybody was told
                key, value = json.loads(line)
                self._set(tuple(key), value)
        self._file = -1
        self._rewrite()

    def get(self, *key: str | int) -> Any:
        """None when there is no value."""
        return self._values.get(key)

    def under(self, *prefix: str | int) -> list[tuple[Key, Any]]:
        """The entries whose keys begin so, each with the rest of its key."""
        width = len(prefix)
        return [(key[width:], value) for key, value in self._values.items() if key[:width] == prefix]

    def put(self, *key: str | int, value: Any) -> None:
        """Set a value; None deletes it."""
        line = json.dumps([key, value]).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):  # a full disk took a piece: cut it off again
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._set(key, value)
        self._lines += 1
        if self._lines > 2 * len(self._values) + _JOURNAL_SLACK_LINES:
            self._rewrite()

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def _set(self, key: Key, value: Any) -> None:
        if value is None:
            self._values.pop(key, None)
        else:
            self._values[key] = value

    def _rewrite(self) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in self._values.items())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._lines = len(self._values)


@dataclass
class Topic:
    """Settings and partitions."""

    config: TopicConfig
    partitions: list[Partition]


class Store:
    """Everything under the data folder; for one process at a time."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.topics: dict[str, Topic] = {}
        self._folder = folder / "topics"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigurationError(f"another embedded log serves {folder}: stop it, or use another --data") from error
        self.journal = Journal(folder / "journal")
        for path in self._folder.iterdir():
            if self.journal.get("topic", path.name) is None:
                shutil.rmtree(path)
        for (name, *_), (count, overrides) in self.journal.under("topic"):
            self._open(str(name), count, parse_config(overrides))

    def topic(self, name: str) -> Topic:
        """Raise LogError when there is none: topics are never created by being named."""
        if name not in self.topics:
            raise LogError(ErrorCode.unknown_topic_or_partition, f"there is no topic {name}")
        return self.topics[name]

    def partition(self, topic: str, index: int) -> Partition:
        """Raise LogError when there is none."""
        partitions = self.topic(topic).partitions
        if not 0 <= index < len(partitions):
            raise LogError(ErrorCode.unknown_topic_or_partition, f"{topic} has no partition {index}")
        return partitions[index]

    def create_topic(self, name: str, count: int, overrides: Mapping[str, str | None], *, dry_run: bool) -> None:
        """Make a topic; a dry run only says whether it could be made, as in the next two."""
        if not _NAME.fullmatch(name):
            raise LogError(ErrorCode.invalid_topic_exception, f"{name!r} cannot be a topic's name")
        if name in self.topics:
            raise LogError(ErrorCode.topic_already_exists, f"Topic '{name}' already exists.")
        self._check_count(count, at_least=1)
        config = parse_config(overrides)
        if not dry_run:
            self.journal.put("topic", name, value=[count, config.overrides])
            self._open(name, count, config)

    def grow_topic(self, name: str, count: int, *, dry_run: bool) -> None:
        """Add partitions up to `count`."""
        topic = self.topic(name)
        self._check_count(count, at_least=len(topic.partitions) + 1)
        if not dry_run:
            self.journal.put("topic", name, value=[count, topic.config.overrides])
            for index in range(len(topic.partitions), count):
                topic.partitions.append(Partition(self._folder / name / str(index), topic.config))

    def configure_topic(self, name: str, overrides: Mapping[str, str | None], *, dry_run: bool) -> None:
        """Replace the topic's settings."""
        topic, config = self.topic(name), parse_config(overrides)
        if not dry_run:
            self.journal.put("topic", name, value=[len(topic.partitions), config.overrides])
            topic.config = config
            for partition in topic.partitions:
                partition.config = config

    def delete_topic(self, name: str) -> None:
        """Delete a topic, its records and what was committed for it."""
        topic = self.topic(name)
        for key, _ in self.journal.under():
            if key[:2] == ("start", name) or (key[0] == "offset" and key[2] == name):
                self.journal.put(*key, value=None)
        self.journal.put("topic", name, value=None)
        del self.topics[name]
        for partition in topic.partitions:
            partition.close(keep=False)
        shutil.rmtree(self._folder / name)

    def delete_records(self, topic: str, index: int, offset: int) -> int:
        """Forget the records below `offset` (-1: all) and return where the partition begins now."""
        partition = self.partition(topic, index)
        offset = partition.end_offset if offset == -1 else offset
        if not 0 <= offset <= partition.end_offset:
            raise LogError(ErrorCode.offset_out_of_range, f"{offset} is beyond {partition.end_offset}")
        self.journal.put("start", topic, index, value=max(offset, partition.start_offset))
        partition.delete_before(offset)
        return partition.start_offset

    def next_producer_id(self) -> int:
        """An id that was never given before."""
        number: int = (self.journal.get("producer") or 0) + 1
        self.journal.put("producer", value=number)
        return number

    def enforce_retention(self) -> None:
        """Delete what the topics' settings no longer keep."""
        for topic in self.topics.values():
            for partition in topic.partitions:
                partition.enforce_retention(self.clock.unix_ms())

    def close(self) -> None:
        """Force everything to the disk."""
        for topic in self.topics.values():
            for partition in topic.partitions:
                partition.close(keep=True)
        self.journal.close()
        self._lock.close()

    def _open(self, name: str, count: int, config: TopicConfig) -> None:
        folder, starts = self._folder / name, [self.journal.get("start", name, index) or 0 for index in range(count)]
        partitions = [Partition(folder / str(index), config, start) for index, start in enumerate(starts)]
        self.topics[name] = Topic(config, partitions)

    @staticmethod
    def _check_count(count: int, *, at_least: int) -> None:
        if not at_least <= count <= _MAX_PARTITIONS:
            raise LogError(ErrorCode.invalid_partitions, f"{count} partitions, not {at_least} to {_MAX_PARTITIONS}")
