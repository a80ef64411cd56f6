"""Child processes that outlive their parent, and former children of another one.

A process is known by its identity (pid and start) and, where the platform has them, by a pidfd: a handle that is
readable once the process has ended and that can never mean another one. Children are in a session of their own, so
that neither a signal to the agent's terminal nor the agent's death reaches them. What a child of ours started itself
and left behind is killed when the child has ended and before it is reaped, while its pid still names the group.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from workers.agent.records import Identity

_poll_seconds = 0.1  # only where there are no pidfds


def start_time(pid: int) -> str | None:
    """When a process started, in the platform's own words; None when there is none, or only its corpse."""
    try:
        # The command's name may contain anything, so fields are counted from the last parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_time_by_ps(pid)
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _start_time_by_ps(pid: int) -> str | None:
    command = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split(maxsplit=1)
    return found[1].strip() if len(found) > 1 and not found[0].startswith("Z") else None


def strays(run_dir: Path, modules: Sequence[str]) -> Iterator[tuple[Identity, str]]:
    """Processes of these modules that were started for this folder, with their leases; needs /proc.

    They are what a record should tell; this finds what was started just before an agent died without writing it.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = entry.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        options = dict(itertools.pairwise(words))
        if options.get("-m") in modules and options.get("--run-dir") == str(run_dir) and "--lease" in options:
            started = start_time(int(entry.name))
            if started is not None:
                yield Identity(int(entry.name), started), options["--lease"]


class Process:
    """One process that is watched until it ends. Use inside the running event loop."""

    def __init__(self, identity: Identity, child: subprocess.Popen[bytes] | None = None) -> None:
        self.identity = identity
        self.is_alive = True
        self.ended_at: float | None = None
        self.status: int | None = None
        """Exit status as in subprocess; None when it cannot be known, since the process was not our child."""
        self._child = child
        self._handle: int | None = None
        self._on_exit: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def spawn(
        cls, command: Sequence[str], *, environment: Mapping[str, str], log: Path, keep_open: Sequence[int] = ()
    ) -> Process:
        """Start a child. Raises OSError."""
        with open(log, "ab", opener=_private) as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
                pass_fds=keep_open,
            )
        return cls(Identity(child.pid, start_time(child.pid) or ""), child)

    @classmethod
    def adopt(cls, identity: Identity) -> Process | None:
        """Watch a process that another agent started; None when it has ended, even if its pid lives again."""
        process = cls(identity)
        process._open_handle()
        # In this order: the handle was opened first, so a match means that it is a handle of that very process.
        if start_time(identity.pid) != identity.started:
            process.forget()
            return None
        return process

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call back once, when the process has ended."""
        self._on_exit = on_exit
        if self._handle is None:
            self._open_handle()
        loop = asyncio.get_running_loop()
        if self._handle is not None:
            loop.add_reader(self._handle, self._ended)
        else:
            self._timer = loop.call_later(_poll_seconds, self._poll)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, to this process or to nobody."""
        if not self.is_alive:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, number)
            elif self._child is not None:
                self._child.send_signal(number)
            elif start_time(self.identity.pid) == self.identity.started:
                os.kill(self.identity.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process and to what it started."""
        if self.is_alive and start_time(self.identity.pid) == self.identity.started:
            self._kill_group()
        self.send(signal.SIGKILL)

    def forget(self) -> None:
        """Stop watching; the process lives on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._handle is not None:
            if self._on_exit is not None:
                asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
            self._handle = None
        self._on_exit = None
        if self._child is not None and self._child.returncode is None:
            self._child.returncode = 0  # or its finaliser warns that it still runs, which is what was wanted
            self._child = None

    def _open_handle(self) -> None:
        if not hasattr(os, "pidfd_open"):
            return
        try:
            self._handle = os.pidfd_open(self.identity.pid)
        except OSError as exc:
            if exc.errno not in (errno.ESRCH, errno.ENOSYS, errno.EPERM, errno.EINVAL):
                raise

    def _poll(self) -> None:
        if self._child is not None:
            # WNOWAIT would be better, to kill what it left behind first, but not every platform that polls has it.
            gone = self._child.poll() is not None
        else:
            gone = start_time(self.identity.pid) != self.identity.started
        if gone:
            self._ended()
        else:
            self._timer = asyncio.get_running_loop().call_later(_poll_seconds, self._poll)

    def _ended(self) -> None:
        on_exit = self._on_exit
        self.is_alive = False
        self.ended_at = asyncio.get_running_loop().time()
        if self._child is not None:
            if self._child.returncode is None:
                self._kill_group()
            self.status = self._child.wait()
        self.forget()
        if on_exit is not None:
            on_exit()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.identity.pid, signal.SIGKILL)


def describe(status: int | None) -> str:
    """An exit status for people."""
    if status is None:
        return "ended"
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"exited with status {status}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
