"""Tensors that do not fit into a record, both ways, through a real stack: numpy in, numpy out."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from benchmarks.harness import control, deploy, wait_for_workers
from contracts.adapters.blobs import Blobs
from contracts.codec import encode_request
from contracts.errors import InternalError, InvalidRequest
from contracts.messages import Status
from contracts.names import ModelVersion
from contracts.settings import BlobSettings
from contracts.specs import DeploymentSpec, DeviceSpec, TopicSpec, WorkersSpec
from contracts.tensors import Ref, Tensor
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.e2e.fleet_kit import client_settings
from tests.engine_process import python_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

MIB = 1024 * 1024
ECHO = ModelVersion("wide", 1)
SUM = """
import numpy as np

class Model:
    def infer(self, inputs, parameters):
        image = inputs["image"]
        outputs = {"sum": image.sum(axis=1, keepdims=True, dtype=np.float64)}
        columns = int(parameters.get("columns", 1))
        outputs["wide"] = np.repeat(image[:, :1], columns, axis=1)
        return outputs
"""
SPEC = {
    "name": "wide",
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, -1]}],
    "outputs": [
        {"name": "sum", "datatype": "FP64", "shape": [-1, 1]},
        {"name": "wide", "datatype": "FP32", "shape": [-1, -1]},
    ],
    "batching": {"max_batch_size": 8},
    "slot_mib": 16,
}
BUDGET = 8 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedStack]:
    folder = tmp_path_factory.mktemp("large")
    model = python_model(folder / "models" / "wide" / "1", SUM, **SPEC)
    env = {"HEADRACE_BLOBS__IN_FLIGHT_BYTES": str(BUDGET)}
    async with EmbeddedStack(folder / "data", kafka="embedded", env=env) as running:
        deployment = DeploymentSpec(
            model="wide",
            version=1,
            workers=WorkersSpec(min=1, max=1),
            device=DeviceSpec(kind="cpu", compute=25, memory_mib=64),
            topic=TopicSpec(partitions=2),
            allow_code=True,
        )
        async with control(running) as (registry, leases):
            await deploy(registry, model, deployment)
            await wait_for_workers(leases, ECHO, 1)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: EmbeddedStack) -> AsyncIterator[InferenceClient]:
    url = stack.settings_environment()["HEADRACE_BLOBS__URL"]
    async with InferenceClient(client_settings(stack, blobs=url)) as opened:
        yield opened


def image(mib: float, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).random((1, int(mib * MIB) // 4), np.float32)


def objects(stack: EmbeddedStack) -> list[Path]:
    return [path for path in (stack.data / "blobs").rglob("*") if path.is_file()]


async def test_a_large_input_is_taken_as_it_is(stack: EmbeddedStack, client: InferenceClient) -> None:
    x = image(5)
    answer = await client.infer("wide@1", {"image": x})
    np.testing.assert_allclose(answer["sum"].to_numpy(), x.sum(axis=1, keepdims=True, dtype=np.float64))
    assert x.nbytes in [path.stat().st_size for path in objects(stack)]


async def test_a_large_output_comes_back_as_it_is(client: InferenceClient) -> None:
    answer = await client.infer("wide@1", {"image": np.full((2, 3), 7, np.float32)}, parameters={"columns": MIB})
    assert answer["wide"].to_numpy().shape == (2, MIB)
    assert (answer["wide"].to_numpy() == 7).all()
    assert answer["sum"].to_numpy().tolist() == [[21.0], [21.0]]


async def test_shared_calls_and_handles_take_large_tensors_too(client: InferenceClient) -> None:
    x = image(1, seed=3)
    handle = await client.submit("wide@1", {"image": x}, idempotency_key="large-1")
    again = await client.infer("wide@1", {"image": x}, idempotency_key="large-1")
    assert (await handle.result())["sum"].to_numpy() == again["sum"].to_numpy()
    with pytest.raises(InvalidRequest, match="is taken"):
        await client.infer("wide@1", {"image": image(1, seed=4)}, idempotency_key="large-1")


async def test_without_a_store_the_client_names_the_setting(stack: EmbeddedStack) -> None:
    async with InferenceClient(client_settings(stack)) as poor:
        with pytest.raises(InvalidRequest, match="HEADRACE_BLOBS__URL"):
            await poor.infer("wide@1", {"image": image(1)})
        with pytest.raises(InternalError, match="set HEADRACE_BLOBS__URL to that of the workers"):
            await poor.infer("wide@1", {"image": np.ones((1, 1), np.float32)}, parameters={"columns": MIB})
        small = await poor.infer("wide@1", {"image": np.ones((1, 1), np.float32)}, parameters={"columns": 100_000})
        assert small["wide"].to_numpy().shape == (1, 100_000)


async def refused(client: InferenceClient, tensor: Tensor, text: str) -> None:
    plan = await client._directory.plan("wide@1", None)
    body = encode_request([tensor])
    _, future = client._launch(plan, body, 20.0, None, None)
    response = await future
    assert response.status is Status.INVALID
    assert response.error is not None
    assert text in response.error.message
    assert not response.error.retryable


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (Tensor("image", "FP32", (1, MIB), ref=Ref("0" * 64, 4 * MIB)), "not in the store"),
        (Tensor("image", "FP32", (1, MIB), ref=Ref("0" * 64, 5)), "needs 4194304 bytes but carries 5"),
        (Tensor("image", "FP32", (1, 2**30), ref=Ref("0" * 64, 2**32)), "raise slot_mib"),
        (Tensor("image", "FP32", (1, 1), ref=Ref("../../../../etc/passwd", 4)), "not a request"),
        (Tensor("image", "FP32", (1, 1), memoryview(bytes(4)), Ref("0" * 64, 4)), "both data and a reference"),
    ],
    ids=["lost", "a size that lies", "beyond a slot", "a path", "twice"],
)
async def test_a_reference_that_leads_nowhere_is_invalid(client: InferenceClient, tensor: Tensor, text: str) -> None:
    await refused(client, tensor, text)


async def test_a_payload_that_was_changed_is_invalid(stack: EmbeddedStack, client: InferenceClient) -> None:
    blobs = Blobs(BlobSettings(url=stack.settings_environment()["HEADRACE_BLOBS__URL"]))
    ref = await blobs.put(bytes(4 * MIB))
    blobs.close()
    (path,) = [path for path in objects(stack) if path.name == ref.digest]
    path.write_bytes(b"\1" * (4 * MIB))
    await refused(client, Tensor("image", "FP32", (1, MIB), ref=ref), "another content")


async def test_a_store_that_is_away_ends_nothing_in_silence(stack: EmbeddedStack, client: InferenceClient) -> None:
    """The worker cannot write its result: an error that may be sent again, and the next one is served."""
    store = stack.data / "blobs"
    store.mkdir(exist_ok=True)  # the first object makes it
    away = store.with_name("away")
    store.rename(away)
    store.write_text("not a folder")
    try:
        with pytest.raises(InternalError, match="could not be stored"):
            await client.infer("wide@1", {"image": np.ones((1, 1), np.float32)}, parameters={"columns": MIB})
    finally:
        store.unlink()
        shutil.move(away, store)
    await test_a_large_output_comes_back_as_it_is(client)


async def test_many_large_requests_at_once_cost_the_worker_its_budget_and_no_more(
    stack: EmbeddedStack, client: InferenceClient
) -> None:
    (ingest,) = [psutil.Process(pid) for pid in stack.worker_pids(modules=("workers.ingest",))]

    def private() -> int:
        return ingest.memory_full_info().uss

    xs = [image(2, seed=seed) for seed in range(64)]
    await asyncio.gather(*(client.infer("wide@1", {"image": x}, ttl_seconds=60) for x in xs[:1]))
    before = most = private()
    over = asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, private())
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        answers = await asyncio.gather(*(client.infer("wide@1", {"image": x}, ttl_seconds=60) for x in xs))
        over.set()
    for x, answer in zip(xs, answers, strict=True):
        np.testing.assert_allclose(answer["sum"].to_numpy().item(), x.sum(dtype=np.float64))
    grown = (most - before) / MIB
    print(f"64 requests of 2 MiB: {grown:.1f} MiB more at most, with a budget of {BUDGET // MIB} MiB")
    assert grown < 3 * BUDGET / MIB  # what is read, what is freed late, and what the allocator keeps
