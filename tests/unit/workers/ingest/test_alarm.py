"""A timer that rings early has rung all the same."""

from __future__ import annotations

import asyncio

from workers.ingest.alarm import Alarm


async def test_it_can_be_set_again_for_the_moment_for_which_it_has_rung() -> None:
    """Timers count whole milliseconds: asked for the same moment again, it once never rang any more."""
    rung = asyncio.Event()
    alarm = Alarm(rung.set)
    for _ in range(2):
        alarm.set(100.0, 100.001)
        async with asyncio.timeout(5):
            await rung.wait()
        rung.clear()


async def test_what_rang_early_counts_as_the_moment_it_was_set_for() -> None:
    rung = asyncio.Event()
    alarm = Alarm(rung.set)
    alarm.set(100.0, 100.0008)
    assert alarm.moment(100.0) == 100.0
    async with asyncio.timeout(5):
        await rung.wait()
    assert alarm.moment(100.0003) == 100.0008
    assert alarm.moment(100.001) == 100.001
    assert alarm.moment(99.9) == 99.9
    alarm.cancel()
    assert alarm.moment(100.0003) == 100.0003


async def test_a_cancelled_alarm_does_not_ring() -> None:
    rung = asyncio.Event()
    alarm = Alarm(rung.set)
    alarm.set(100.0, 100.0)
    alarm.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not rung.is_set()
