"""Values from the store that a step, a join or the head of a job looks into."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from contracts.adapters.blobs import Blobs
from contracts.compile import compile_plan
from contracts.messages import Status
from contracts.names import ModelVersion
from contracts.payloads import URL_VARIABLE
from contracts.pipelines import parse_pipeline
from contracts.plans import Env, Failure, Plan
from contracts.references import looked_into
from contracts.settings import BlobSettings
from contracts.tensors import Ref, Tensor
from workers.draining.lookups import Lookups

PIPELINE = """
name: page
version: 1
inputs: [{name: page, datatype: FP32, shape: [-1, 4]}, {name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  one: {model: m@1, inputs: {row: input.row}}
  two: {model: m@2, inputs: {row: one.row}, when: {tensor: input.page, op: max_below, value: 2}}
  three: {model: m@3, inputs: {row: input.row}}
  crops:
    map: {over: input.page}
    steps: {read: {model: m@4, inputs: {row: row.page}}}
    outputs: {text: read.text}
  mean: {reduce: mean, inputs: {row: [two.row, three.row]}}
outputs: {row: mean.row, page: input.page, text: crops.text}
"""
LIMIT = 10_000


def compiled() -> Plan:
    spec, _ = parse_pipeline(PIPELINE, "test")
    return compile_plan(spec, pin=lambda n, v, _: ModelVersion(n, v or 1), signature_of=lambda _: None)


async def looked_up(lookups: Lookups, node: str, *envs: Env) -> Sequence[Env] | Failure:
    found: asyncio.Future[Sequence[Env] | Failure] = asyncio.get_running_loop().create_future()
    lookups.when(compiled(), node, envs, "", found.set_result, found.set_result)
    return await found


def test_only_what_conditions_reducers_and_maps_read_is_looked_into() -> None:
    plan = compiled()
    assert looked_into(plan, "one") == {"input.page"}
    assert looked_into(plan, "three") == set()
    assert looked_into(plan, "mean") >= {"two.row", "three.row"}
    (gather,) = [node.name for node in plan.nodes if node.kind == "gather"]
    assert any(key.endswith(".text") for key in looked_into(plan, gather))


async def test_what_is_looked_into_is_read_and_the_rest_stays_where_it_is(tmp_path: Path) -> None:
    blobs = Blobs(BlobSettings(url=tmp_path.as_uri()))
    lookups = Lookups(blobs, LIMIT)
    page = Tensor.from_numpy("input.page", np.ones((1, 4), np.float32))
    away = Tensor(page.name, page.datatype, page.shape, ref=await blobs.put(page.data))
    other = Tensor("input.row", page.datatype, page.shape, ref=away.ref)

    found = await looked_up(lookups, "one", {"input.page": away, "input.row": other})

    assert not isinstance(found, Failure)
    assert bytes(found[0]["input.page"].data) == bytes(page.data)
    assert found[0]["input.row"] is other
    blobs.close()


@pytest.mark.parametrize(
    ("node", "ref", "status", "text"),
    [
        ("one", Ref("0" * 64, 16), Status.INTERNAL, "not in the store"),
        ("input", Ref("0" * 64, 16), Status.INVALID, "not in the store"),
        ("one", Ref("0" * 64, LIMIT + 1), Status.INVALID, "IN_FLIGHT_BYTES"),
    ],
)
async def test_a_value_that_cannot_be_had_is_a_failure(
    tmp_path: Path, node: str, ref: Ref, status: Status, text: str
) -> None:
    blobs = Blobs(BlobSettings(url=tmp_path.as_uri()))
    found = await looked_up(Lookups(blobs, LIMIT), node, {"input.page": Tensor("input.page", "FP32", (1, 4), ref=ref)})
    assert isinstance(found, Failure)
    assert found.status is status
    assert text in found.message
    blobs.close()


async def test_a_worker_without_a_store_says_so() -> None:
    away = Tensor("input.page", "FP32", (1, 4), ref=Ref("0" * 64, 16))
    found = await looked_up(Lookups(None, LIMIT), "one", {"input.page": away})
    assert isinstance(found, Failure)
    assert URL_VARIABLE in found.message


async def test_a_worker_that_stops_reads_nothing_more(tmp_path: Path) -> None:
    blobs = Blobs(BlobSettings(url=tmp_path.as_uri()))
    lookups = Lookups(blobs, LIMIT)
    away = Tensor("input.page", "FP32", (1, 4), ref=Ref("0" * 64, 16))
    called: list[object] = []
    lookups.when(compiled(), "one", [{"input.page": away}], "", called.append, called.append)
    await lookups.stop()
    assert not called
    blobs.close()
