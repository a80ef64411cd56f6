"""A model whose rows may ask for trouble: what becomes of a worker then is what the tests look at.

The first column says what a row does; 0 is a good row, answered with the sum of its other columns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace import InvalidRequest, InvalidRows

GOOD, RAISE, HANG, LEAK, EXIT, KILL, TOO_FEW, NO_MEMORY, GIVE_UP, KILL_WORKER, SHORT, REFUSE, NAME = range(13)
LEAK_BYTES: Final = 64 * 1024 * 1024


class Hostile:
    """The handler that `model.yaml` names."""

    def __init__(self) -> None:
        self._leaked: list[NDArray[np.uint8]] = []
        self._short: set[float] = set()

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Sum up the rows, or do what one of them asks for."""
        rows = inputs["row"]
        wishes = set(rows[:, 0].astype(int).tolist())
        self._misbehave(wishes)
        refuse(rows[:, 0], wishes)
        if SHORT in wishes and len(rows) == 1:
            self._run_short(float(rows[0, 1]))
        total = rows[:, 1:].sum(axis=1, keepdims=True, dtype=np.float32)
        return {"sum": total[:-1] if TOO_FEW in wishes else total}

    def _run_short(self, value: float) -> None:
        """Be out of memory for this value twice."""
        if value + 0.5 not in self._short:
            self._short.add(value + 0.5 if value in self._short else value)
            raise MemoryError

    def _misbehave(self, wishes: set[int]) -> None:
        if RAISE in wishes:
            raise ValueError("this row is not to my liking")
        if HANG in wishes:
            threading.Event().wait()
        if LEAK in wishes:
            self._leaked.append(np.ones(LEAK_BYTES, np.uint8))
        if EXIT in wishes:
            os._exit(7)
        if KILL in wishes:
            os.kill(os.getpid(), signal.SIGKILL)
        if NO_MEMORY in wishes:
            raise MemoryError
        if KILL_WORKER in wishes:
            kill_worker()
        if GIVE_UP in wishes:
            raise SystemExit(3)


def refuse(asked: NDArray[Any], wishes: set[int]) -> None:
    """Refuse the batch for its rows' sake, with ten megabytes of reasons, or name them."""
    if REFUSE in wishes:
        raise InvalidRequest("this row is no good " * 500_000)
    if NAME in wishes:
        raise InvalidRows(
            {row: f"wish {int(asked[row])} is not granted" for row in np.flatnonzero(asked == NAME).tolist()}
        )


def kill_worker() -> None:
    """SIGKILL to both processes of this worker, as a crash of the container would."""
    lease = sys.argv[sys.argv.index("--lease") + 1]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = entry.joinpath("cmdline").read_text().split("\0")
            if "workers.ingest" in words and lease in words:
                os.kill(int(entry.name), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
