"""Policy for every test: what it may leave behind (nothing), what marks it carries, and the servers it can ask for."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from deploy.embedded.processes import GUARDIAN

pytest_plugins = ["tests.servers", "tests.parallel"]

# Without this, asking for the current loop of the main thread makes one, which pytest-asyncio then forgets to close.
asyncio.set_event_loop(None)

# Two shared cores make single examples slow now and then; pytest-timeout bounds the whole test.
hypothesis.settings.register_profile("headrace", deadline=None, max_examples=60)
hypothesis.settings.load_profile("headrace")

SERVER_TIMEOUT_SECONDS = 90  # the first test on a cold broker pays for its start
SETTLE_SECONDS = 3.0
# Beside others: a segment whose process was just killed is in nobody's hands until the agent of their stack unlinks it.
SEGMENT_SETTLE_SECONDS = 30.0 if "PYTEST_XDIST_WORKER" in os.environ else SETTLE_SECONDS
SEGMENTS = "headrace-*"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the place of the slots, not of a scratch file
_KAFKA = {"kafka_server", "three_brokers", "own_log", "log_settings"}
_REDIS = {"redis_server", "own_redis", "any_redis_settings"}
# The default executor's threads end with their loop, which outlives the fixtures of a test.
_LOOP_THREADS = ("asyncio_", "pytest_timeout")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for mark, names in (("kafka", _KAFKA), ("redis", _REDIS)):
            if fixtures & names:
                item.add_marker(mark)
        if "servers" in fixtures or "three_brokers" in fixtures:
            _allow(item, SERVER_TIMEOUT_SECONDS)
        if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA device"))


def _allow(item: pytest.Item, seconds: float) -> None:
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(seconds))


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> Iterator[None]:
    """A developer's own HEADRACE_* variables must not steer the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("HEADRACE_") and not name.startswith("HEADRACE_TEST_"):
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no task, thread, child process or shared-memory segment behind."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_leaked_tasks")
    threads, children, segments = set(threading.enumerate()), child_pids(), shared_segments()
    yield
    _expect_none("threads", lambda: _leaked_threads(threads))
    _expect_none("child processes", lambda: child_pids() - children - GUARDIAN.pids)
    _expect_none("shared-memory segments", lambda: unused(shared_segments() - segments), SEGMENT_SETTLE_SECONDS)


@pytest.fixture
async def _no_leaked_tasks() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    mine = {*before, asyncio.current_task()}
    until = time.monotonic() + SETTLE_SECONDS
    while (left := asyncio.all_tasks() - mine) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert not left, f"tasks left behind: {sorted(task.get_name() for task in left)}"


def _expect_none(what: str, left: Callable[[], set[str] | set[int]], seconds: float | None = None) -> None:
    until = time.monotonic() + (seconds or SETTLE_SECONDS)
    while (names := left()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not names, f"{what} left behind: {sorted(map(str, names))}"


def _leaked_threads(before: set[threading.Thread]) -> set[str]:
    new = (thread for thread in threading.enumerate() if thread not in before)
    return {thread.name for thread in new if not thread.name.startswith(_LOOP_THREADS)}


def child_pids() -> set[int]:
    """The processes that this one started and has not reaped."""
    pids: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile; its children moved to another one
            pids.update(map(int, listing.read_text(encoding="ascii").split()))
    return pids


def shared_segments() -> set[str]:
    """Headrace's slots in shared memory."""
    return {path.name for path in SHARED_MEMORY.glob(SEGMENTS)}


def unused(segments: set[str]) -> set[str]:
    """The segments that no process maps: those of another run on this machine are none of ours."""
    left = set(segments)
    for maps in Path("/proc").glob("[0-9]*/maps") if left else ():
        with contextlib.suppress(OSError):
            text = maps.read_text(encoding="utf-8", errors="replace")
            left = {name for name in left if str(SHARED_MEMORY / name) not in text}
    return left
