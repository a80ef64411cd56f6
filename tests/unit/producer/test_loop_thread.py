"""Work handed to the loop's thread is given up whenever its caller is interrupted."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from contracts.errors import ClientClosed
from producer.loop_thread import LoopThread
from tests.helpers import WAIT_SECONDS

_T = TypeVar("_T")


class Errand:
    """Work without an end of its own, which says how it fared."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.was_cancelled = threading.Event()

    async def __call__(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


class Interrupted(LoopThread):
    """Ctrl-C comes when the loop has been handed the work, and before the caller has its future."""

    def __init__(self, until: Callable[[], object]) -> None:
        super().__init__("interrupted")
        self._until = until

    def call(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> concurrent.futures.Future[_T]:
        super().call(work)
        self._until()
        raise KeyboardInterrupt


@contextmanager
def running(thread: LoopThread) -> Iterator[LoopThread]:
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()


def test_a_wait_that_runs_out_gives_the_work_up() -> None:
    work = Errand()
    with running(LoopThread("waits")) as thread, pytest.raises(concurrent.futures.TimeoutError):
        thread.wait_for(work, timeout=0.1)
    assert work.was_cancelled.is_set() == work.began.is_set()


def test_an_interrupt_right_behind_the_hand_over_gives_the_work_up() -> None:
    work = Errand()
    with running(Interrupted(until=work.began.wait)) as thread:
        with pytest.raises(KeyboardInterrupt):
            thread.wait_for(work)
        assert work.was_cancelled.wait(WAIT_SECONDS)


def test_work_that_is_given_up_before_its_turn_never_begins() -> None:
    work, turn = Errand(), threading.Event()
    with running(Interrupted(until=lambda: None)) as thread:
        thread.soon(turn.wait)  # the loop is busy until the caller has been interrupted
        with pytest.raises(KeyboardInterrupt):
            thread.wait_for(work)
        turn.set()
    assert not work.began.is_set()


def test_a_thread_that_was_stopped_takes_no_work() -> None:
    with running(LoopThread("stopped")) as thread:
        thread.stop()
        with pytest.raises(ClientClosed):
            thread.wait_for(Errand())
