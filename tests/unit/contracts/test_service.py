"""The life of a service: loops that end are noticed, stopping is bounded and complete."""

from __future__ import annotations

import asyncio

import pytest

from contracts.service import Deadline, Loops
from tests.helpers import FakeClock


async def test_a_loop_that_returns_ends_its_service() -> None:
    loops = Loops("s")
    loops.spawn("short", asyncio.sleep(0))
    with pytest.raises(RuntimeError, match=r"s\.short ended by itself"):
        await loops.wait()
    await loops.stop()


async def test_the_error_of_a_loop_reaches_whoever_waits() -> None:
    async def fail() -> None:
        msg = "boom"
        raise OSError(msg)

    loops = Loops("s")
    loops.spawn("forever", asyncio.Event().wait())  # type: ignore[arg-type]  # returns True, never
    loops.spawn("bad", fail())
    with pytest.raises(OSError, match="boom"):
        await loops.wait()
    await loops.stop()


async def test_stop_ends_every_loop_and_may_be_called_again() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    loops = Loops("s")
    for number in range(3):
        loops.spawn(str(number), work())
    await asyncio.sleep(0)
    await loops.stop()
    await loops.stop()
    assert len(ended) == 3


async def test_join_waits_for_a_loop_that_ends_by_itself() -> None:
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    loops = Loops("s")
    loops.spawn("work", work())
    await loops.join("work", 5.0)
    assert done.is_set()
    await loops.join("unknown", 5.0)
    await loops.stop()


def test_a_deadline_never_goes_below_zero() -> None:
    clock = FakeClock()
    deadline = Deadline(5.0, clock)
    clock.advance(3)
    assert deadline.remaining == 2
    clock.advance(30)
    assert deadline.remaining == 0
