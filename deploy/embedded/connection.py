"""The connection file of a running stack: `stack.json` in its data folder.

`headrace up` writes it when the stack is ready and removes it when it stops, so that every other command on the machine
finds the stack without flags. It holds the Redis password, so only its owner may read it. The lock beside it, which the
kernel lets go when the holder dies however that comes about, tells a running stack from one that crashed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from contracts.errors import ConfigurationError

FILE_NAME = "stack.json"
_LOCK_NAME = "stack.lock"


class StackFile(msgspec.Struct, frozen=True, kw_only=True):
    """What another process needs to use a running stack."""

    kafka_bootstrap: str
    redis_url: str
    prefix: str
    pool: str
    blobs: str = ""
    """Root of the store for large tensors."""
    kafka: str = ""
    """What serves Kafka, for people."""
    redis: str = ""
    """What serves Redis, for people."""
    pids: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which any Headrace process finds the stack."""
        return {
            "HEADRACE_KAFKA__BOOTSTRAP": self.kafka_bootstrap,
            "HEADRACE_KAFKA__PREFIX": self.prefix,
            "HEADRACE_REDIS__URL": self.redis_url,
            "HEADRACE_REDIS__PREFIX": self.prefix,
            "HEADRACE_REDIS__POOL": self.pool,
        } | ({"HEADRACE_BLOBS__URL": self.blobs} if self.blobs else {})


def default_data_folder(environ: Mapping[str, str]) -> Path:
    """Where `headrace up` keeps its data unless told otherwise: $XDG_DATA_HOME/headrace or ~/.local/share/headrace."""
    base = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or Path.home(), ".local", "share")  # noqa: PTH118 - HOME may be anything
    return Path(base) / "headrace"


def write_stack_file(data: Path, content: StackFile) -> None:
    """Write the file for its owner alone; a reader sees all of it or nothing."""
    draft = data / f".{FILE_NAME}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content)))
    draft.replace(data / FILE_NAME)


def remove_stack_file(data: Path) -> None:
    """Nobody finds the stack any more."""
    (data / FILE_NAME).unlink(missing_ok=True)


def read_stack_file(data: Path) -> StackFile | None:
    """The stack that runs on this folder, or None: never started, stopped, or crashed and so gone."""
    try:
        content = (data / FILE_NAME).read_bytes()
    except OSError:
        return None
    if not is_locked(data):
        return None
    try:
        return msgspec.json.decode(content, type=StackFile)
    except msgspec.DecodeError as exc:
        msg = f"{data / FILE_NAME} cannot be read ({exc}): was the stack started by another version? Start it again"
        raise ConfigurationError(msg) from exc


def lock_data(data: Path) -> int | None:
    """The sole right to a data folder for as long as the descriptor is open; None when another stack has it."""
    descriptor = os.open(data / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def is_locked(data: Path) -> bool:
    """Whether a stack works on this folder."""
    try:
        descriptor = os.open(data / _LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(data: Path) -> int:
    """The process id of the stack that works on this folder, 0 when it cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        return int((data / _LOCK_NAME).read_text())
    return 0
