from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from contracts.adapters.blobs import Blobs
from contracts.names import ModelVersion
from contracts.plans import Answer, Ask, Condition, Emission, Guard, Node, Part, Plan, Source
from contracts.settings import BlobSettings
from contracts.tensors import Tensor
from workers.draining.large_hops import LargeHops
from workers.draining.publisher import Publisher

RECORD, TENSOR = 100_000, 40_000
PICKY = Guard((Condition((Source("step", "b"),), "max_below", 1),))
PLAN = Plan(
    pipeline=ModelVersion("p", 1),
    nodes=(
        Node(name="join", kind="reduce", branches=("step",)),
        Node(name="picky", kind="reduce", branches=("step",), quorum=1, when=(PICKY,)),
    ),
    partitions=1,
)


class Held:
    """Counts the bytes that are under way."""

    def __init__(self) -> None:
        self.bytes = 0

    def hold(self, size: int) -> None:
        self.bytes += size

    def release(self, size: int) -> None:
        self.bytes -= size


def tensor(name: str, size: int) -> Tensor:
    return Tensor.from_numpy(name, np.arange(size, dtype=np.uint8).reshape(1, -1))


def ask(*inputs: Tensor, carried: int = 0) -> Ask:
    env = {"input.page": tensor("input.page", carried)}
    return Ask("detect", (), ModelVersion("detect", 1), inputs, env, {})


def hops(url: str, held: Held) -> tuple[LargeHops, Blobs]:
    blobs = Blobs(BlobSettings(url=url))
    return LargeHops(blobs, cast("Publisher", held), record_bytes=RECORD, tensor_bytes=TENSOR), blobs


async def carried_out(large: LargeHops, emission: Emission) -> Emission | str:
    found: asyncio.Future[Emission | str] = asyncio.get_running_loop().create_future()
    large.put(PLAN, emission, "", found.set_result, lambda _, why: found.set_result(why))
    result = await found
    await asyncio.sleep(0)  # its task ends
    return result


async def test_tensors_above_the_limit_are_stored_and_small_ones_stay(tmp_path: Path) -> None:
    held = Held()
    large, blobs = hops(tmp_path.as_uri(), held)
    emission = ask(tensor("picture", 90_000), tensor("small", 10), carried=20_000)
    assert large.concerns(PLAN, emission)

    small = await carried_out(large, emission)

    assert isinstance(small, Ask)
    assert [one.ref is not None for one in small.inputs] == [True, False]
    assert bytes(small.carried["input.page"].data) == bytes(emission.carried["input.page"].data)
    assert not large.concerns(PLAN, small)
    (picture, _) = await blobs.restore(small.inputs)
    assert bytes(picture.data) == bytes(emission.inputs[0].data)
    assert held.bytes == 0
    blobs.close()


async def test_tensors_that_only_together_are_too_large_are_stored_until_the_rest_fits(tmp_path: Path) -> None:
    large, blobs = hops(tmp_path.as_uri(), Held())
    emission = ask(tensor("a", 35_000), tensor("b", 34_000), carried=40_000)
    assert large.concerns(PLAN, emission)

    small = await carried_out(large, emission)

    assert isinstance(small, Ask)
    assert [one.ref is not None for one in (*small.inputs, *small.carried.values())] == [False, False, True]
    blobs.close()


async def test_a_job_s_outputs_are_references_where_the_response_fits_no_record_without(tmp_path: Path) -> None:
    large, blobs = hops(tmp_path.as_uri(), Held())
    assert not large.concerns(PLAN, Answer(outputs=(tensor("image", TENSOR + 1),)))
    outputs = tensor("image", RECORD - 4 * TENSOR // 5), tensor("mask", TENSOR - 1)
    small = await carried_out(large, Answer(outputs=outputs, index=3, run="w.1"))
    assert isinstance(small, Answer)
    assert [output.ref is not None for output in small.outputs] == [True, False]
    assert (small.index, small.run) == (3, "w.1")
    blobs.close()


async def test_what_a_model_gets_and_is_carried_past_it_is_stored_once(tmp_path: Path) -> None:
    large, blobs = hops(tmp_path.as_uri(), Held())
    page = tensor("page", 90_000)
    env = {"input.page": Tensor("input.page", page.datatype, page.shape, page.data), "input!": tensor("input!", 50_000)}

    small = await carried_out(large, Ask("detect", (), ModelVersion("detect", 1), (page,), env, {}))

    assert isinstance(small, Ask)
    assert small.inputs[0].ref is not None
    assert small.carried["input.page"].ref == small.inputs[0].ref
    assert small.carried["input!"].ref is None, "failures are read wherever they are"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    blobs.close()


async def test_what_is_sent_to_a_join_is_stored_but_for_what_says_that_it_is_ready(tmp_path: Path) -> None:
    large, blobs = hops(tmp_path.as_uri(), Held())
    env = {name: tensor(name, TENSOR + 1) for name in ("step.a", "step.b")}

    for join, stored in (("join", {"step.a", "step.b"}), ("picky", {"step.a"})):
        small = await carried_out(large, Part(join, (), "step", "value", env))
        assert isinstance(small, Part)
        assert {key for key, one in small.env.items() if one.ref is not None} == stored
    blobs.close()


def test_what_fits_is_left_alone(tmp_path: Path) -> None:
    large, blobs = hops(tmp_path.as_uri(), Held())
    assert not large.concerns(PLAN, ask(tensor("a", 39_000), carried=30_000))
    assert large.concerns(PLAN, ask(tensor("a", 39_000), tensor("b", 38_000), carried=30_000))
    blobs.close()


async def test_a_store_that_cannot_be_written_is_a_reason_and_nothing_stays_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.draining.errands.PAUSES_SECONDS", (0.001,))
    (tmp_path / "file").write_text("in the way")
    held = Held()
    large, blobs = hops((tmp_path / "file").as_uri(), held)

    why = await carried_out(large, ask(tensor("picture", 90_000)))

    assert isinstance(why, str)
    assert "could not be stored" in why
    assert held.bytes == 0
    blobs.close()


async def test_a_worker_that_stops_gives_up_what_is_not_stored(tmp_path: Path) -> None:
    held = Held()
    large, blobs = hops(tmp_path.as_uri(), held)
    large.put(PLAN, ask(tensor("picture", 90_000)), "", lambda _: None, lambda _, __: None)
    assert held.bytes == 90_000
    await large.stop()
    assert held.bytes == 0
    blobs.close()
