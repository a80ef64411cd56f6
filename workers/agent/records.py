"""What an agent leaves on disk for its successor: one record per worker, and the names of all its files.

A record holds the lease and the identities of both processes. A pid alone would be a trap, since pids are used again:
an identity is the pid with the moment at which the process started, and the boot in which that was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from contracts.errors import ConfigurationError
from contracts.pool import Lease

log = logging.getLogger(__name__)

_longest_socket_path = 103  # what fits sockaddr_un on every platform


class Identity(msgspec.Struct, frozen=True):
    """One process, for as long as the machine runs. `started` is in clock ticks since boot, or as `ps` prints it."""

    pid: int
    started: str


class Record(msgspec.Struct, frozen=True):
    """A worker that was started here."""

    lease: Lease
    boot_id: str
    ingest: Identity | None = None
    engine: Identity | None = None


_decoder = msgspec.json.Decoder(Record)


class RunFolder:
    """The files of an agent's workers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def socket(self, lease: str) -> Path:
        """Where the ingest listens and the engine connects."""
        return self.path / f"{lease}.sock"

    def log(self, lease: str, role: str) -> Path:
        """Output of one process."""
        return self.path / f"{lease}.{role}.log"

    def slots(self, lease: str) -> Path:
        """The shared memory of a worker; the same rule as in the ingest, which creates it."""
        shared = Path("/dev/shm")  # noqa: S108 - only to remove what the ingest created exclusively
        return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / f"headrace-{lease}"

    def has_served(self, lease: str, pid: int) -> bool:
        """Whether this engine was ready once; its ingest leaves its process id beside the socket when it is."""
        with contextlib.suppress(OSError):
            return (self.path / f"{lease}.served").read_text(encoding="ascii") == str(pid)
        return False

    def fault(self, lease: str) -> str | None:
        """Why a worker of this lease could not run here, or None."""
        path = str(self.socket(lease))
        if len(os.fsencode(path)) > _longest_socket_path:
            return f"the socket path {path} is longer than {_longest_socket_path} bytes; choose a shorter run_dir"
        return None

    def save(self, record: Record) -> None:
        """Write a record; a reader sees the old one or the new one."""
        write_atomically(self._record(record.lease.id), msgspec.json.encode(record))

    def load(self) -> Iterator[Record]:
        """All records; one that cannot be read is reported and removed."""
        for path in sorted(self.path.glob("*.json")):
            try:
                yield _decoder.decode(path.read_bytes())
            except (OSError, msgspec.DecodeError) as exc:
                log.warning("the record %s cannot be used and is removed: %s", path.name, exc)
                path.unlink(missing_ok=True)

    def clear(self, lease: str) -> None:
        """Remove what only living processes need: the socket, and the slots with their memory."""
        for path in (self.socket(lease), self.slots(lease), self.path / f"{lease}.served"):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def remove(self, lease: str) -> None:
        """Remove everything of a worker but its logs."""
        self.clear(lease)
        with contextlib.suppress(OSError):
            self._record(lease).unlink(missing_ok=True)

    def trim_logs(self, limit_bytes: int) -> None:
        """Drop the older half of logs that have grown too large. Their writers append, so they go on undisturbed."""
        for path in self.path.glob("*.log"):
            with contextlib.suppress(OSError):
                if path.stat().st_size > limit_bytes:
                    with path.open("rb") as file:
                        file.seek(-(limit_bytes // 2), os.SEEK_END)
                        file.readline()
                        rest = file.read()
                    os.truncate(path, 0)
                    with path.open("ab") as file:
                        file.write(rest)

    def prune_logs(self, keep: int, in_use: frozenset[str]) -> None:
        """Remove the oldest logs of ended workers."""
        old = [path for path in self.path.glob("*.log") if path.name.rsplit(".", 2)[0] not in in_use]
        with contextlib.suppress(OSError):
            old.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in old[keep:]:
                path.unlink()

    def _record(self, lease: str) -> Path:
        return self.path / f"{lease}.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by a rename."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(draft).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(draft).unlink()
        raise


def make_private_folder(path: Path) -> None:
    """Create a folder that only this user may write to; raises ConfigurationError when others could have already."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        is_ours = found.st_uid == os.getuid()
        if is_ours and found.st_mode & stat.S_IWGRP and not found.st_mode & stat.S_IWOTH:  # made under a umask of 002
            path.chmod(stat.S_IMODE(found.st_mode) & ~stat.S_IWGRP)
    except OSError as exc:
        msg = f"the folder {path} cannot be made: {exc}"
        raise ConfigurationError(msg) from exc
    if not stat.S_ISDIR(found.st_mode) or not is_ours or found.st_mode & stat.S_IWOTH:
        msg = f"{path} must be a folder that belongs to this user and that nobody else may write to"
        raise ConfigurationError(msg)
