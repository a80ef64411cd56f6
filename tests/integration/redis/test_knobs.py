"""Knobs set by hand reach a serving worker."""

from __future__ import annotations

import pytest

from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import Registry
from contracts.names import ModelVersion
from contracts.serving_specs import BatchingSpec
from contracts.specs import Knobs
from workers.ingest.knobs import KnobWatch

DIGITS = ModelVersion("digits", 2)
OWN = BatchingSpec(max_batch_size=32)


async def test_knobs_come_back_and_empty_ones_leave_nothing(redis: RedisDoor) -> None:
    registry = Registry(redis)
    assert await registry.get_knobs(DIGITS) == Knobs()
    assert await registry.put_knobs(DIGITS, Knobs(slo_ms=20, preferred_batch_sizes=(4, 8)))
    assert await registry.get_knobs(DIGITS) == Knobs(slo_ms=20, preferred_batch_sizes=(4, 8))
    assert await registry.put_knobs(DIGITS, Knobs())
    assert not await registry.put_knobs(DIGITS, Knobs())
    assert await registry.revision() == 2


async def test_a_worker_takes_changed_knobs_once_and_gets_its_own_back(redis: RedisDoor) -> None:
    registry = Registry(redis)
    applied: list[BatchingSpec] = []
    watch = KnobWatch(registry, DIGITS, OWN, applied.append)
    await watch.look()
    assert applied == []
    await registry.put_knobs(DIGITS, Knobs(max_batch_delay_ms=5))
    await watch.look()
    await watch.look()
    assert applied == [OWN.model_copy(update={"max_batch_delay_ms": 5})]
    await registry.put_knobs(DIGITS, Knobs())
    await watch.look()
    assert applied[-1] == OWN


async def test_knobs_that_do_not_fit_the_model_leave_it_as_it_is(
    redis: RedisDoor, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(redis)
    applied: list[BatchingSpec] = []
    await registry.put_knobs(DIGITS, Knobs(max_batch_size=64))
    await KnobWatch(registry, DIGITS, OWN, applied.append).look()
    assert applied == []
    assert "above the model's own 32" in caplog.text
