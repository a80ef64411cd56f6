"""The tests' hand on the embedded log's control door: sets and clears its faults."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.embedded.log_faults import Kind, socket_path


class FaultClient:
    """One connection to the control door of the log that serves `folder`. It blocks, for well under a millisecond."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        with socket_path(folder) as path:
            self._socket.connect(path)
        self._lines = self._socket.makefile("rb")

    def set(self, kind: Kind, **options: str | int) -> None:
        """Set a fault; options are `api`, `topic`, `code`, `ms` and `times`."""
        self._ask({"set": {"kind": kind, **options}})

    def clear(self) -> None:
        """Forget all faults."""
        self._ask({"clear": True})

    def faults(self) -> list[dict[str, Any]]:
        """Those that are set, with the times they are still to come."""
        return self._ask({})

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _ask(self, wish: dict[str, Any]) -> list[dict[str, Any]]:
        self._socket.sendall(json.dumps(wish).encode() + b"\n")
        answer = json.loads(self._lines.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        faults: list[dict[str, Any]] = answer["faults"]
        return faults


@contextmanager
def log_faults(folder: Path) -> Iterator[FaultClient]:
    """A client that leaves no fault behind."""
    client = FaultClient(folder)
    try:
        yield client
        client.clear()
    finally:
        client.close()
