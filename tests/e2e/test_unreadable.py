"""A record that nobody can decode is given up; whatever lies before, behind and beside it is answered."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks.harness import control, deploy, running_stack, wait_for_workers
from contracts import topics
from producer.client import InferenceClient
from tests.chaos.load import FOLDER, MODEL, PARTITIONS, deployment, key_of
from tests.contract.log_raw import RawClient, unreadable_batch

BEFORE_AND_BEHIND = 3


async def ask_every_partition(client: InferenceClient) -> None:
    row = np.ones((1, 64), np.float32)
    async with asyncio.timeout(20):
        await asyncio.gather(
            *(
                client.infer(MODEL.model, {"row": row}, version=MODEL.version, key=key_of(partition))
                for partition in range(PARTITIONS)
                for _ in range(BEFORE_AND_BEHIND)
            )
        )


@pytest.mark.timeout(90)
async def test_what_cannot_be_decoded_is_stepped_over() -> None:
    topic = topics.requests("headrace", MODEL.model, MODEL.version)
    async with running_stack("embedded") as stack:
        async with control(stack) as (registry, leases):
            await deploy(registry, FOLDER, deployment(1))
            await wait_for_workers(leases, MODEL, 1)
        async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="t") as client:
            await ask_every_partition(client)
            bad = unreadable_batch(2)
            with RawClient(stack.kafka_bootstrap) as raw:
                answers = raw.produce(topic, bad, bad)  # into partitions 0 and 1
            assert [answer.error_code for answer in answers] == [0, 0]
            await ask_every_partition(client)
            await ask_every_partition(client)
