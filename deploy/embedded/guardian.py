"""Ends servers whose starter died without a word.

A server that was started for one run must not outlive it, also when that run ends by SIGKILL. So the starter keeps one
guardian: a child in a session of its own that reads process ids from a pipe (`+pid` watch, `-pid` forget). When the
pipe ends, however that came about, the guardian asks what is left to stop, the last one first, and kills what has not
stopped in time.

Why not the kernel's parent-death signal: it is sent when the *thread* that started the child ends, which a thread pool
does any time; it exists on Linux only; and it would have to be set between fork and exec, in Python code that runs in
a copy of a process with threads.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

GRACE_SECONDS = 10.0  # an agent lets its workers finish, a broker writes its clean-shutdown mark
_POLL_SECONDS = 0.05


def watch(lines: Iterable[str]) -> list[int]:
    """Which processes are still watched when the lines end, in the order in which they were added."""
    watched: dict[int, None] = {}
    for line in lines:
        sign, number = line[:1], line[1:].strip()
        if sign == "+" and number.isdecimal():
            watched[int(number)] = None
        elif sign == "-" and number.isdecimal():
            watched.pop(int(number), None)
    return list(watched)


def end(pids: Sequence[int], grace_seconds: float = GRACE_SECONDS) -> None:
    """Stop the processes, the last one first: it may need the earlier ones in order to finish.

    One that has not ended in time is killed. They are not our children: we poll.
    """
    for pid in reversed(pids):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGCONT)  # a paused process cannot stop
            os.kill(pid, signal.SIGTERM)
            until = time.monotonic() + grace_seconds
            while exists(pid) and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
            os.kill(pid, signal.SIGKILL)


def exists(pid: int) -> bool:
    """Whether a process of this number lives; one that has ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc: the signal alone must do
        return True
    return state != "Z"


class Guardian:
    """The starter's side: keeps one guardian process, from the first watched process on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, None] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pids(self) -> frozenset[int]:
        """The watched processes and the guardian itself: children that are meant to outlive single steps."""
        with self._lock:
            own = {self._process.pid} if self._process and self._process.poll() is None else set()
            return frozenset(self._watched.keys() | own)

    def add(self, pid: int) -> None:
        """Watch a process from now on."""
        with self._lock:
            self._watched[pid] = None
            self._tell(f"+{pid}\n")

    def discard(self, pid: int) -> None:
        """Forget a process that has ended and was reaped: its number may be given to another."""
        with self._lock:
            self._watched.pop(pid, None)
            if self._process is not None:
                self._tell(f"-{pid}\n")

    def close(self) -> None:
        """Let the guardian go, and return when it has ended what is still watched."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None and process.stdin is not None:
                process.stdin.close()
                process.wait()

    def _tell(self, line: str) -> None:
        if self._process is None:
            atexit.register(self._close_in, os.getpid())
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # it outlives us for a moment: whoever reads our output must not wait for it
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C in a terminal reaches a whole group: not this one
            )
            line = "".join(f"+{pid}\n" for pid in self._watched)
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(line)
                pipe.flush()

    def _close_in(self, pid: int) -> None:
        if os.getpid() == pid:  # not in a fork of the starter: the servers are not its own
            self.close()


def main() -> None:
    """Read until the starter is gone, then end what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # ends with its pipe, never before
    end(watch(sys.stdin))


if __name__ == "__main__":
    main()
