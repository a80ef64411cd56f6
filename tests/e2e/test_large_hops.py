"""Values that no record holds, from step to step: as inputs, carried past a model, and on their way to a join."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from contracts.errors import RequestError
from contracts.payloads import URL_VARIABLE
from producer.client import InferenceClient
from tests.e2e.pipeline_kit import PipelineFleet, pipeline_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

ROWS = 3 * 1024 * 1024 // 16
CHAIN = """
name: wide-chain
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}, {name: page, datatype: FP32, shape: [-1, -1]}]
steps:
  one: {model: relay@1, inputs: {row: input.row}}
  two: {model: relay@2, inputs: {row: one.row}}
outputs: {row: two.row, page: input.page}
topic: {partitions: 2}
"""
LOOKS = """
name: wide-looks
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}, {name: page, datatype: FP32, shape: [-1, -1]}]
steps:
  one: {model: relay@1, inputs: {row: input.row}}
  two:
    model: relay@2
    inputs: {row: one.row}
    when: {tensor: input.page, op: max_below, value: 2}
  mean: {reduce: mean, inputs: {page: [input.page, input.page]}}
outputs: {row: two.row, page: mean.page}
topic: {partitions: 2}
"""
FORK = """
name: wide-fork
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}, {name: page, datatype: FP32, shape: [-1, -1]}]
steps:
  a: {model: relay@1, inputs: {row: input.row}}
  b: {model: relay@2, inputs: {row: input.row}}
  mean: {reduce: mean, inputs: {row: [a.row, b.row]}}
  looked: {reduce: mean, inputs: {page: [input.page, input.page]}, when: {tensor: mean.row, op: max_below, value: 9}}
outputs: {row: mean.row, page: looked.page}
topic: {partitions: 2}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineFleet]:
    async with pipeline_fleet(tmp_path_factory.mktemp("hops")) as running:
        await running.apply(CHAIN, LOOKS, FORK)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(fleet: PipelineFleet) -> AsyncIterator[InferenceClient]:
    stack = fleet.stack
    url = stack.settings_environment()[URL_VARIABLE]
    async with InferenceClient(
        bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="wide", blobs=url
    ) as opened:
        yield opened


def page(seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).random((1, ROWS * 4), np.float32)


async def test_a_large_value_is_carried_past_two_steps(client: InferenceClient) -> None:
    row = np.array([[0, 5, 0.5, 0]], np.float32)
    answer = await client.infer("wide-chain@1", {"row": row, "page": page()}, ttl_seconds=60)
    assert answer["row"].to_numpy()[0, 1] == 7
    np.testing.assert_array_equal(answer["page"].to_numpy(), page())


async def test_conditions_and_reducers_look_into_large_values(client: InferenceClient) -> None:
    row = np.array([[0, 5, 0.5, 0]], np.float32)
    answer = await client.infer("wide-looks@1", {"row": row, "page": page()}, ttl_seconds=60)
    assert answer["row"].to_numpy()[0, 1] == 7
    np.testing.assert_allclose(answer["page"].to_numpy(), page())
    answer = await client.infer("wide-looks@1", {"row": row, "page": page() + 2}, ttl_seconds=60)
    assert "row" not in {tensor.name for tensor in answer.outputs}


async def test_a_join_puts_large_values_together(client: InferenceClient) -> None:
    row = np.array([[0, 5, 0.5, 0]], np.float32)
    answer = await client.infer("wide-fork@1", {"row": row, "page": page()}, ttl_seconds=60)
    assert answer["row"].to_numpy()[0, 1] == 6
    np.testing.assert_allclose(answer["page"].to_numpy(), page())


async def test_without_a_store_what_is_too_large_is_an_error_that_says_so(fleet: PipelineFleet) -> None:
    row = np.array([[0, 5, 0.5, 0]], np.float32)
    with pytest.raises(RequestError, match=URL_VARIABLE):
        await fleet.client.infer("wide-chain@1", {"row": row, "page": page()}, ttl_seconds=60)
