"""The life of everything long-lived: start, quiet, drain, stop.

`start()` returns when the service is ready. `stop()` may be called any number of times, also before `start()`. A
process stops in three phases under one deadline, made once and passed down: *quiet* (take nothing new), *drain* (finish
what was taken), *stop*. The first SIGTERM or SIGINT begins that; a second one ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from contracts.clock import Clock, SystemClock
from contracts.errors import HeadraceError

log = logging.getLogger(__name__)

# Before Python 3.12 `asyncio.wait_for`, which the client libraries use, can lose a cancellation.
CANCEL_AGAIN_SECONDS = 1.0


class Deadline:
    """A point in monotonic time that all steps of a stop share."""

    def __init__(self, seconds: float, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._end = self._clock.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - self._clock.monotonic())


class Service(Protocol):
    """Something that runs until it is stopped."""

    async def start(self) -> None:
        """Return when ready; raise when it cannot become ready."""
        ...

    async def wait(self) -> None:
        """Return when the service ended by itself; raise what ended it."""
        ...

    async def stop(self, deadline: Deadline) -> None:
        """Quiet, drain, stop; idempotent, safe before start."""
        ...


class Loops:
    """The endless coroutines of a service, each a named task; the end of any of them ends the service.

    `wait()` raises what the first ended loop raised; a loop that returns by itself is an error too, since nobody would
    do its work any more. `stop()` cancels what still runs and waits for it.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as the task `<owner>.<name>`."""
        task = asyncio.get_running_loop().create_task(loop, name=f"{self._owner}.{name}")
        self._tasks.append(task)

    async def join(self, name: str, seconds: float) -> None:
        """Wait until a loop that was told to end has ended, at most `seconds`."""
        tasks = [task for task in self._tasks if task.get_name() == f"{self._owner}.{name}"]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def wait(self) -> None:
        """Wait until a loop ends; raise its error, or RuntimeError when it returned."""
        if not self._tasks:
            await asyncio.Event().wait()
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.result()
                msg = f"{task.get_name()} ended by itself"
                raise RuntimeError(msg)

    async def stop(self) -> None:
        """Cancel the loops that still run and wait until they have ended; errors they end with are logged."""
        tasks, self._tasks = self._tasks, []
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=CANCEL_AGAIN_SECONDS)
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                log.error("%s failed while stopping", task.get_name(), exc_info=error)


def settle_heap() -> None:
    """Spare the collector what lives as long as the process, and have it look less often at what does not.

    Requests under way are thousands of objects that are no garbage; at Python's own threshold of 700 a busy worker
    spends a twelfth of its time walking them. Reference counts free nearly all; cycles come from exceptions only.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def run_until_signal(service: Service, *, stop_seconds: float = 25.0) -> int:
    """Start a service, wait for a signal or its own end, stop it. Returns the process's exit status."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def on_signal(number: int) -> None:
        seen.append(number)
        if len(seen) > 1:
            sys.stderr.write("stopped at once by a second signal\n")
            raise SystemExit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    status = 0
    waiters: list[asyncio.Task[Any]] = []
    try:
        await service.start()
        settle_heap()
        waiters = [
            loop.create_task(service.wait(), name="service.wait"),
            loop.create_task(stopping.wait(), name="signal.wait"),
        ]
        done, _ = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        if waiters[0] in done:
            waiters[0].result()
    except HeadraceError as exc:
        log.error("%s: %s", type(exc).__name__, exc)  # noqa: TRY400 - the operator needs the sentence, not our stack
        status = 1
    except Exception:
        log.exception("ended by an unexpected error")
        status = 1
    finally:
        for waiter in waiters:
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await waiter
        await service.stop(Deadline(stop_seconds))
    return status


def main(build: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Run a process's main coroutine on uvloop where there is one, and exit with what it returns."""
    if sys.platform == "win32":
        raise SystemExit(asyncio.run(build()))
    import uvloop

    raise SystemExit(uvloop.run(build()))
