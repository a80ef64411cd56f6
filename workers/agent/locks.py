"""The operating system's word on who may use a device.

The pool decides who should hold a device; this decides who can, on this machine, whatever any agent believes. Each
device has a lock file: a lease that has it whole takes the lock alone, all others share it. The engine inherits the
open file, and with it the lock: as long as any process of the lease lives, even one that lost its agent, the device
stays taken. Beside the lock stand the highest tokens that were ever admitted, so that a lease which was overtaken (the
pool was restored, the agent slept) is refused although nobody holds the lock at the moment.

Lock files are never removed: one that is removed while somebody waits for it is two locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import HeadraceError, LeaseLost
from contracts.pool import Lease
from workers.agent.records import make_private_folder

_width = 20


class ShareBusy(HeadraceError):
    """Another lease's process still uses the device; it will end, or be ended."""

    retryable = True


@dataclass(frozen=True, slots=True)
class Tokens:
    """The highest tokens that a device has seen: of any lease, and of leases that had it whole."""

    highest: int = 0
    whole: int = 0

    def admit(self, token: int, *, is_whole: bool) -> Tokens | None:
        """What to remember when `token` is admitted; None when it was overtaken.

        Leases that share a device start in any order. But a lease that has it whole is granted only when all earlier
        ones are gone, and so is every lease after that one.
        """
        if token < (self.highest if is_whole else self.whole):
            return None
        return Tokens(max(self.highest, token), token if is_whole else self.whole)


class ShareLock:
    """The locks of all devices of one lease. `descriptors` are for the engine to inherit."""

    def __init__(self, descriptors: tuple[int, ...]) -> None:
        self.descriptors = descriptors

    def close(self) -> None:
        """Let go, unless an engine still holds its copy; idempotent."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)


class Locks:
    """The lock files of a machine. `pool` separates tokens, which compare only within one pool."""

    def __init__(self, folder: Path, pool: str) -> None:
        self._folder, self._pool = folder, pool

    def acquire(self, lease: Lease) -> ShareLock:
        """Take the devices of a lease.

        Raises ShareBusy when one is used by somebody else in a way that excludes this, LeaseLost for a token that was
        overtaken.
        """
        make_private_folder(self._folder)
        is_whole = lease.mode == "whole"
        taken: list[int] = []
        try:
            for share in sorted(lease.shares, key=lambda share: share.device):  # one order: no two wait for each other
                taken.append(self._lock(share.device, is_whole=is_whole))
                self._admit(share.device, lease, is_whole=is_whole)
        except BaseException:
            ShareLock(tuple(taken)).close()
            raise
        return ShareLock(tuple(taken))

    def _lock(self, device: str, *, is_whole: bool) -> int:
        descriptor = _open(self._folder / f"{_file_name(device)}.lock")
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if is_whole else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(descriptor)
            msg = f"{device} is still used by another process"
            raise ShareBusy(msg) from exc
        return descriptor

    def _admit(self, device: str, lease: Lease, *, is_whole: bool) -> None:
        path = self._folder / f"{_file_name(self._pool)}.{_file_name(device)}.tokens"
        with _exclusively(path) as descriptor:
            seen = _parse(os.pread(descriptor, 2 * _width + 2, 0))
            after = seen.admit(lease.token, is_whole=is_whole)
            if after is None:
                msg = f"{lease.id} has token {lease.token}, but {device} has seen {seen.highest}"
                raise LeaseLost(msg)
            if after != seen:
                os.pwrite(descriptor, f"{after.highest:0{_width}d} {after.whole:0{_width}d}\n".encode(), 0)


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[int]:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for microseconds
        yield descriptor
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int | None:
    """The sole right to a folder for as long as the descriptor is open; None when another process has it."""
    descriptor = _open(folder / "agent.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def _parse(raw: bytes) -> Tokens:
    # Torn by a loss of power: no process that a token could guard against has survived that.
    found = raw.split()
    if len(found) != 2 or not all(part.isdigit() for part in found):  # noqa: PLR2004 - highest, whole
        return Tokens()
    return Tokens(int(found[0]), int(found[1]))
