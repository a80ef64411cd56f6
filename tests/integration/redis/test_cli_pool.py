"""Commands that change the pool, over a real Redis."""

from __future__ import annotations

import json

import pytest

from contracts.adapters.redis import RedisDoor
from contracts.errors import ConfigurationError
from contracts.settings import HeadraceSettings, RedisSettings
from deploy.cli.drain import _forget
from deploy.cli.quota import _quota
from tests.integration.redis.kit import Pool, cpu


@pytest.fixture
def settings(pool: Pool, redis: RedisDoor, redis_settings: RedisSettings) -> HeadraceSettings:
    return HeadraceSettings(redis=redis_settings.model_copy(update={"pool": pool.leases.pool}))


async def test_only_a_node_that_is_gone_can_be_forgotten(
    pool: Pool, settings: HeadraceSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await pool.node("n1")
    with pytest.raises(ConfigurationError, match="n1 is ready"):
        await _forget(settings, "n1", as_json=False)
    with pytest.raises(ConfigurationError, match="no such node"):
        await _forget(settings, "n2", as_json=False)
    await pool.fall_silent("n1", 20_000)
    assert await pool.leases.expire_nodes(suspect_ms=3_000, dead_ms=10_000) == [("n1", "dead")]
    await _forget(settings, "n1", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"node": "n1", "state": "forgotten"}
    assert (await pool.leases.state()).nodes == {}


async def test_a_quota_holds_until_it_is_lifted(
    pool: Pool, settings: HeadraceSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await pool.node("n1")
    await _quota(settings, "acme", 20, as_json=False)
    assert "acme: 20 % of compute at most" in capsys.readouterr().out
    refused = await pool.try_commit("n1", cpu("n1", compute=30), tenant="acme")
    assert getattr(refused, "code", "") == "QUOTA"
    await _quota(settings, "acme", None, as_json=True)
    await pool.reserved("n1", cpu("n1", compute=30), tenant="acme")
