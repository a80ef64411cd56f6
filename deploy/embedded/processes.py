"""Server processes on loopback: start, wait until ready, stop, kill, pause, resume, start again.

A `Child` is one process with its log; a `Server` is what the callers hold: an address and the children behind it, none
when the server is somebody else's. Everything here blocks for at most a few seconds, so that it serves tests, scripts
and thread pools alike. Children run in sessions of their own: Ctrl-C in a terminal must reach Headrace first, which
drains what is in flight before it stops the servers under it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contracts.errors import TransportError
from deploy.embedded.guardian import Guardian

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 10.0
START_SECONDS = 60.0  # a cold JVM on a busy two-core machine takes about ten
_POLL_SECONDS = 0.02
_TAIL_LINES = 15
_PORT_ATTEMPTS = 3

GUARDIAN = Guardian()  # one per process, like the process table that it mirrors


def free_port() -> int:
    """A port that was free a moment ago; whoever uses it must be ready to find it taken."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def on_free_port(start: Callable[[int], Server]) -> Server:
    """Start a server on a free port, and again on another when somebody took it in between."""
    for _ in range(_PORT_ATTEMPTS - 1):
        try:
            return start(free_port())
        except TransportError as exc:
            if "in use" not in str(exc).lower():
                raise
    return start(free_port())


class Child:
    """One server process. `start` may be called again after the process has ended, on the same data and address."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.argv = [str(argument) for argument in argv]
        self.log = log
        self._ready = ready
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._is_asked = False  # to stop

    @property
    def pid(self) -> int:
        """The process id of the latest start; 0 before the first one."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def end(self) -> str:
        """How the process ended, for people: `SIGKILL`, `exit status 1`; empty while it runs."""
        status = self._process.poll() if self._process else None
        if status is None:
            return ""
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        if self.is_running:
            return
        self._forget()
        self._is_asked = False
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as sink:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment,
                start_new_session=True,
            )
        GUARDIAN.add(self._process.pid)

    def wait_ready(self, until: float) -> None:
        """Return when the server answers. Raises TransportError when it ended or the monotonic time has come."""
        while not self._ready():
            if not self.is_running:
                status = self._process.returncode if self._process else None
                self._forget()
                msg = f"{self.name} ended with status {status} before it was ready{self.log_tail()}"
                raise TransportError(msg)
            if time.monotonic() > until:
                self.kill()
                msg = f"{self.name} was not ready in time and was killed{self.log_tail()}"
                raise TransportError(msg)
            time.sleep(_POLL_SECONDS)

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start the process and return when it is ready."""
        until = time.monotonic() + seconds
        self.spawn()
        self.wait_ready(until)

    def terminate(self) -> None:
        """Ask the process to stop, also when paused; does not wait. Asks once: a second signal would mean at once."""
        self._send(signal.SIGCONT)
        if not self._is_asked:
            self._is_asked = True
            self._send(signal.SIGTERM)

    def stop(self, until: float | None = None) -> None:
        """Stop the process, by force when the monotonic time has come. Idempotent, safe before `start`."""
        self.terminate()
        if self._process is not None:
            left = STOP_SECONDS if until is None else max(0.0, until - time.monotonic())
            try:
                self._process.wait(left)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process.wait()
        self._forget()

    def kill(self) -> None:
        """End the process as a crash would, and wait until it is gone."""
        self._send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._forget()

    def pause(self) -> None:
        """Hang the process, as a long garbage collection or a stuck disk would."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self._send(signal.SIGCONT)

    def log_tail(self) -> str:
        """The end of the log, ready to be appended to an error."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        except FileNotFoundError:
            lines = []
        return "\n".join([f"; the end of {self.log}:", *lines]) if lines else f"; it wrote nothing to {self.log}"

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # checks first whether the process is still there

    def _forget(self) -> None:
        if self._process is not None:
            GUARDIAN.discard(self._process.pid)


@dataclass(frozen=True)
class Server:
    """A broker or a Redis: where it is, what it is, and the processes behind it when they are ours."""

    name: str
    """What was taken, for example `Valkey 9.1`."""
    address: str = field(repr=False)
    """Bootstrap servers, or a URL with its password: never printed."""
    description: str
    """One line for the operator: what was taken and how to choose another."""
    children: tuple[Child, ...] = ()
    """The processes, in the order of their node ids; empty for a server that was there before us."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the running children."""
        return tuple(child.pid for child in self.children if child.is_running)

    @property
    def is_ours(self) -> bool:
        """Whether we started it, and so may stop it."""
        return bool(self.children)

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start again what is not running; all children at once, then wait for each."""
        until = time.monotonic() + seconds
        try:
            for child in self.children:
                child.spawn()
            for child in self.children:
                child.wait_ready(until)
        except TransportError:
            self.kill()
            raise

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop all children under one deadline. Idempotent; a server that is not ours stays as it is."""
        until = time.monotonic() + seconds
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.stop(until)

    def kill(self) -> None:
        """End all children as a crash of the machine would."""
        for child in self.children:
            child.kill()
