from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from contracts.adapters.blobs import Blobs
from contracts.clock import SystemClock
from contracts.settings import BlobSettings
from scheduler.sweeper import sweep_loop
from tests.helpers import wait_until


async def test_only_the_leader_sweeps_and_only_what_is_old(tmp_path: Path) -> None:
    settings = BlobSettings(url=tmp_path.as_uri(), sweep_seconds=0.02)
    store, is_leading = Blobs(settings), False
    old, young = [
        tmp_path / "default" / ref.digest[:2] / ref.digest for ref in [await store.put(b"1"), await store.put(b"2")]
    ]
    store.close()
    then = SystemClock().unix_ms() / 1000 - settings.keep_seconds - 60
    os.utime(old, (then, then))
    asked = 0

    def lead() -> bool:
        nonlocal asked
        asked += 1
        return is_leading

    loop = asyncio.get_running_loop().create_task(sweep_loop(settings, lead))
    await wait_until(lambda: asked > 1)
    assert old.exists()
    is_leading = True
    await wait_until(lambda: not old.exists())
    assert young.exists()
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


async def test_a_store_with_rules_of_its_own_is_left_alone(tmp_path: Path) -> None:
    settings = BlobSettings(url=tmp_path.as_uri(), sweep_seconds=0)
    loop = asyncio.get_running_loop().create_task(sweep_loop(settings, lambda: pytest.fail("it was asked")))
    done, _ = await asyncio.wait([loop], timeout=0.05)
    assert not done
    loop.cancel()


async def test_a_store_that_is_away_does_not_end_the_scheduler(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = BlobSettings(url=f"nosuchthing://{tmp_path}/file", sweep_seconds=0.01)
    asked = 0

    def lead() -> bool:
        nonlocal asked
        asked += 1
        return True

    loop = asyncio.get_running_loop().create_task(sweep_loop(settings, lead))
    await wait_until(lambda: asked > 3)
    assert not loop.done()
    loop.cancel()
