"""An event loop in a thread of its own, for code that has none.

Every call is remembered until it has ended, so that `stop` can wait for all of them: a call handed to a loop that has
just stopped would otherwise leave its caller waiting for ever.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from contracts.errors import ClientClosed

_T = TypeVar("_T")

_START_SECONDS = 10.0
_DRAIN_SECONDS = 5.0


def new_loop() -> asyncio.AbstractEventLoop:
    """The fastest loop that this platform has."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


class _Errand(Generic[_T]):
    """Work that can be given up from the moment on at which it is handed over.

    Its future cannot do that: Ctrl-C may come when the loop has the work and the caller does not yet have the future.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._is_given_up = False

    async def run(self) -> _T:
        """Do the work, on the loop."""
        if self._is_given_up:
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        return await self._work()

    def give_up(self) -> None:
        """Cancel the work if it is under way, and keep it from beginning if not; on the loop."""
        self._is_given_up = True
        if self._task is not None:
            self._task.cancel()


class LoopThread:
    """Runs coroutines for other threads."""

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._is_over = False
        self._calls: set[concurrent.futures.Future[Any]] = set()
        # A daemon: a client that was forgotten must not keep its process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; returns when the loop runs."""
        self._thread.start()
        self._ready.wait(_START_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._stopping.wait()

    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return threading.current_thread() is self._thread

    def call(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> concurrent.futures.Future[_T]:
        """Run a coroutine on the loop. Raises ClientClosed once stopped. Cancelling the future cancels the work."""
        with self._lock:
            if self._loop is None or self._is_over:
                msg = "the client is closed"
                raise ClientClosed(msg)
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
            self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return future

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, _T]], timeout: float | None = None) -> _T:
        """Run a coroutine on the loop and wait for it; whatever interrupts the wait cancels the work."""
        errand = _Errand(work)
        try:
            return self.call(errand.run).result(timeout)
        except BaseException:
            self.soon(errand.give_up)
            raise

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have a function called on the loop."""
        with self._lock:
            if self._loop is not None and not self._is_over:
                self._loop.call_soon_threadsafe(callback, *args)

    def stop(self) -> None:
        """Let calls under way end, for at most a few seconds, then end the thread. Idempotent; from another thread."""
        with self._lock:
            was_over, self._is_over = self._is_over, True
            calls = self._calls.copy()
        if self._loop is None:
            return
        if not was_over:
            concurrent.futures.wait(calls, timeout=_DRAIN_SECONDS)
            for call in calls:
                call.cancel()
            self._loop.call_soon_threadsafe(self._stopping.set)
        if not self.is_current():
            self._thread.join(_DRAIN_SECONDS)
