"""A machine of its own for each test, on a real Redis."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.settings import RedisSettings
from tests.integration.agent.kit import MODULES, ROOT, Fleet
from workers.agent.processes import strays


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="h-") as path:
        yield Path(path).resolve()
        for identity, _ in strays(Path(path).resolve(), MODULES):  # only where a test failed half-way
            os.kill(identity.pid, signal.SIGKILL)


@pytest.fixture
async def fleet(
    any_redis_settings: RedisSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the stand-ins are not installed
    async with await RedisDoor.from_settings(any_redis_settings) as door:
        yield Fleet(Leases(door, any_redis_settings.pool), any_redis_settings, folder)
