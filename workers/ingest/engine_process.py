"""The engine's process as ingest sees it: to be killed when it is wedged, and weighed.

Ingest kills it by itself instead of asking the node agent, its parent: only ingest knows how long a batch has been
running, the two share a user, and the kill must not depend on an agent that may be away or on Redis in between. The
agent sees the exit as it sees every other and starts the next engine. The process id is the one that the kernel gives
for the other end of the socket (not what the engine says of itself), and a handle is opened at once, so that the kill
cannot hit a stranger that got the same number later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
from pathlib import Path

log = logging.getLogger(__name__)

_credentials = struct.Struct("3i")  # pid, uid, gid


def peer_pid(connected: socket.socket) -> int | None:
    """The process at the other end of a unix socket; None where the platform does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    with contextlib.suppress(OSError):
        pid, _, _ = _credentials.unpack(connected.getsockopt(socket.SOL_SOCKET, option, _credentials.size))
        return int(pid) or None
    return None


class EngineProcess:
    """One engine. Close it, or a handle leaks."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._handle = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def memory_mib(self) -> float:
        """Resident memory, shared pages left out; 0 where it cannot be told."""
        try:
            fields = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()
            return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20
        except (OSError, ValueError, IndexError):
            return 0.0

    def close(self) -> None:
        """Let go of the process; idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
