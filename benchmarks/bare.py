"""The bare model: its backend called in a loop, in a process of its own, with the threads that the engine has.

The parent asks by lines (`rows seconds`) and is answered by lines of JSON, so the process is loaded once and a
measurement can stand right beside the one it is compared with. Between two questions it waits for its input, idle.

    python -P -m benchmarks.bare MODEL
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import numpy as np

from benchmarks.engine_models import BenchModel, prepare
from workers.backends import new_backend
from workers.backends.base import Backend, ModelContext

_WARM_UP_CALLS = 5
_LEAST_CALLS = 8
_thread_variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Ceiling(NamedTuple):
    """What the model does by itself with batches of one size."""

    rows: int
    rows_per_s: float
    p50_ms: float
    p99_ms: float


def mean(ceilings: Sequence[Ceiling]) -> Ceiling:
    """The middle between measurements with as many rows."""
    rows, *figures = (sum(values) / len(ceilings) for values in zip(*ceilings, strict=True))
    return Ceiling(int(rows), *figures)


class Bare:
    """The parent's hand on the process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def measure(self, rows: int, seconds: float) -> Ceiling:
        """Batches of `rows` rows, one after another, for about `seconds`."""
        sender, receiver = self._process.stdin, self._process.stdout
        assert sender is not None
        assert receiver is not None
        sender.write(f"{rows} {seconds}\n".encode())
        line = await receiver.readline()
        assert line, "the bare model's process has ended"
        return Ceiling(**json.loads(line))


@asynccontextmanager
async def bare_process(model: BenchModel) -> AsyncIterator[Bare]:
    """A process that holds the bare model."""
    command = [sys.executable, "-m", "benchmarks.bare", model.spec.name]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment(model))
    try:
        yield Bare(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def environment(model: BenchModel) -> dict[str, str]:
    """That of a process which holds the bare model: as many threads as the engine has."""
    return {**os.environ, **dict.fromkeys(_thread_variables, str(model.threads))}


def load(model: BenchModel) -> Backend:
    """The model's backend with the model in it."""
    backend = new_backend(model.spec.backend)
    backend.load(ModelContext(model.spec, model.folder, model.threads))
    return backend


def measure(backend: Backend, model: BenchModel, rows: int, seconds: float) -> Ceiling:
    """Call the backend until the time is over, at least a few times."""
    inputs = model.sample(rows)
    for _ in range(_WARM_UP_CALLS if rows == 1 else 1):
        backend.infer(inputs, rows, {})
    times: list[float] = []
    started = last = time.perf_counter()
    while last - started < seconds or len(times) < _LEAST_CALLS:
        backend.infer(inputs, rows, {})
        now = time.perf_counter()
        times.append(now - last)
        last = now
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return Ceiling(rows, rows * len(times) / (last - started), float(p50), float(p99))


def main() -> None:
    """Answer questions until the input ends."""
    model = prepare(sys.argv[1])
    backend = load(model)
    for line in sys.stdin:
        rows, seconds = line.split()
        sys.stdout.write(json.dumps(measure(backend, model, int(rows), float(seconds))._asdict()) + "\n")
        sys.stdout.flush()
    backend.close()


if __name__ == "__main__":
    main()
