from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contracts.settings import KafkaSettings, RedisSettings
from tests.integration.producer.kit import ECHO, Fleet, Responder


@pytest.fixture
async def fleet(log_settings: KafkaSettings, any_redis_settings: RedisSettings) -> Fleet:
    """The echo model, deployed, with nobody who answers."""
    fleet = Fleet(log_settings, any_redis_settings)
    await fleet.deploy(ECHO)
    return fleet


@pytest.fixture
async def responder(fleet: Fleet) -> AsyncIterator[Responder]:
    """Answers the echo model's requests; tests change how."""
    async with Responder(fleet.kafka) as responder:
        yield responder
