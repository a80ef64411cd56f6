"""Small things that many tests share: waiting without sleeping blindly, a clock in the test's hand, unique names."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

WAIT_SECONDS = 20.0  # long enough for two busy cores; a test that needs it all is about to fail anyway
POLL_SECONDS = 0.01


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]],
    message: str = "the condition did not come true",
    *,
    timeout: float = WAIT_SECONDS,
) -> None:
    """Return when the predicate, plain or async, is true; fail with the message after `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return
        if time.monotonic() > until:
            raise AssertionError(f"{message} (waited {timeout:g} s)")
        await asyncio.sleep(POLL_SECONDS)


def wait_until_sync(
    predicate: Callable[[], object],
    message: str = "the condition did not come true",
    *,
    timeout: float = WAIT_SECONDS,
) -> None:
    """The same for tests without an event loop."""
    until = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > until:
            raise AssertionError(f"{message} (waited {timeout:g} s)")
        time.sleep(POLL_SECONDS)


async def finished(*command: str, seconds: float = 60.0, **options: Any) -> tuple[int, str, str]:
    """Run a program to its end: status, output and errors. It does not outlive a test that fails meanwhile."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, **options)
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


class FakeClock:
    """A `contracts.clock.Clock` that stands still until the test moves it."""

    def __init__(self, monotonic: float = 1_000.0, unix_ms: int = 1_700_000_000_000) -> None:
        self._monotonic = monotonic
        self._unix_ms = unix_ms

    def monotonic(self) -> float:
        return self._monotonic

    def unix_ms(self) -> int:
        return self._unix_ms

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._monotonic += seconds
        self._unix_ms += round(seconds * 1000)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock, as an operator or a time server does, also backwards."""
        self._unix_ms += round(seconds * 1000)


def unique_name(stem: str = "t") -> str:
    """A valid name that no other test uses: tests share servers, and nothing else."""
    return f"{stem}-{secrets.token_hex(5)}"
