"""A stack as users start it, once for all tests that only use it: `headrace up` in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

from deploy.embedded.processes import GUARDIAN
from tests.helpers import wait_until_sync

ROOT = Path(__file__).resolve().parents[2]
UP_COMMAND = "headrace up --fleet deploy/fleet/fleet.yaml"  # the one in README.md
READY_SECONDS = 90.0
STOP_SECONDS = 40.0


def headrace_program() -> str:
    """The console script beside the interpreter that runs the tests."""
    beside = Path(sys.executable).parent / "headrace"
    found = str(beside) if beside.exists() else shutil.which("headrace")
    assert found, "the package is not installed: pip install -e ."
    return found


class Terminal:
    """A shell in the repository or another folder, in which `headrace` is on the PATH and finds one data folder."""

    def __init__(self, home: Path, folder: Path = ROOT) -> None:
        self.home = home
        self.folder = folder
        path = f"{Path(headrace_program()).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self.environment = kept | {"PATH": path, "XDG_DATA_HOME": str(home), "TERM": "dumb"}

    def run(
        self, command: str, *, more: Mapping[str, str] | None = None, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of shell to its end."""
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.environment | dict(more or {}),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


class Up:
    """A running `headrace up`; as a context it does not outlive a test that fails."""

    def __init__(self, terminal: Terminal, command: str = UP_COMMAND) -> None:
        self.output = terminal.home / "up.out"
        program, *arguments = command.split()
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                [shutil.which(program, path=terminal.environment["PATH"]) or program, *arguments],
                cwd=terminal.folder,
                env=terminal.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        GUARDIAN.add(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        GUARDIAN.discard(self.process.pid)

    def wait_ready(self) -> None:
        try:
            wait_until_sync(
                lambda: "Ready after" in self.text or self.process.poll() is not None,
                "headrace up was not ready",
                timeout=READY_SECONDS,
            )
        except AssertionError as exc:
            exc.add_note(self.text)
            raise
        assert self.process.poll() is None, self.text

    @property
    def text(self) -> str:
        return self.output.read_text()

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        with self:
            return self.process.wait(STOP_SECONDS)


@pytest.fixture(scope="session")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    return Terminal(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def up(terminal: Terminal) -> Iterator[Up]:
    """The README's stack; afterwards Ctrl-C must end it in peace."""
    running = Up(terminal)
    try:
        running.wait_ready()
        yield running
    finally:
        status = running.interrupt()
    assert status == 0, running.text
    assert running.text.endswith("Stopped.\n")
