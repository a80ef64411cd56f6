from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.adapters.blobs import Blobs, ByteBudget, Swept
from contracts.clock import SystemClock
from contracts.errors import ConfigurationError, PayloadLost, TransportError
from contracts.messages import MAX_TTL_MS
from contracts.payloads import ENVELOPE_BYTES, to_be_stored
from contracts.settings import BlobSettings
from contracts.tensors import Ref, Tensor
from tests.helpers import unique_name

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=["file", "memory"])
async def blobs(request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Blobs]:
    url = f"file://{root}" if request.param == "file" else f"memory://{unique_name()}"
    store = Blobs(BlobSettings(url=url))
    yield store
    store.close()


@pytest.fixture
async def files(root: Path) -> AsyncIterator[Blobs]:
    store = Blobs(BlobSettings(url=f"file://{root}"))
    yield store
    store.close()


def object_of(root: Path, ref: Ref, tenant: str = "default") -> Path:
    return root / tenant / ref.digest[:2] / ref.digest


@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_what_was_put_is_got_by_its_digest(size: int, blobs: Blobs) -> None:
    data = os.urandom(size)
    ref = await blobs.put(memoryview(data))
    assert ref == Ref(hashlib.sha256(data).hexdigest(), size)
    assert await blobs.get(ref) == data
    assert await blobs.put(data) == ref


async def test_a_tenant_reads_only_its_own_objects(blobs: Blobs) -> None:
    ref = await blobs.put(b"secret", tenant="acme")
    assert await blobs.get(ref, tenant="acme") == b"secret"
    with pytest.raises(PayloadLost, match="not in the store"):
        await blobs.get(ref)


@pytest.mark.parametrize(
    "digest",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "a" * 63,
        "A" * 64,
        "a" * 64 + "\n",
        "http://evil/" + "a" * 52,
        "",
        "é" * 64,
    ],
)
@pytest.mark.parametrize("tenant", ["default", "../..", "a/b", "", "/"])
async def test_no_reference_leads_anywhere_else(digest: str, tenant: str, files: Blobs, root: Path) -> None:
    (root.parent / "outside").write_bytes(b"outside")
    with pytest.raises(PayloadLost):
        await files.get(Ref(digest, 7), tenant=tenant)
    good = hashlib.sha256(b"outside").hexdigest()
    with pytest.raises(PayloadLost):
        await files.get(Ref(good, 7), tenant=tenant)


async def test_an_object_that_was_changed_or_cut_is_not_handed_out(files: Blobs, root: Path) -> None:
    ref = await files.put(b"x" * 1000)
    for content in (b"y" * 1000, b"x" * 999, b"x" * 5_000, b""):
        object_of(root, ref).write_bytes(content)
        with pytest.raises(PayloadLost, match="another"):
            await files.get(ref)
    await files.put(b"x" * 1000)
    assert await files.get(ref) == b"x" * 1000


async def test_a_store_that_cannot_be_written_is_a_transport_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Blobs(BlobSettings(url=f"file://{tmp_path}/file/below"))
    with pytest.raises(TransportError, match="writing a payload failed"):
        await store.put(b"x")
    store.close()
    with pytest.raises(TransportError, match="closed"):
        await store.put(b"x")


@pytest.mark.parametrize("url", ["relative/folder", "nosuchscheme://x/y"])
async def test_a_url_that_is_none_names_the_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match="HEADRACE_BLOBS__URL"), closing(Blobs(BlobSettings(url=url))) as store:
        await store.put(b"x")


async def test_a_store_that_hangs_is_given_up(files: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Blobs(BlobSettings(url="memory://slow", timeout_seconds=0.05))
    over = time.monotonic() + 0.5

    def hang(*_: object) -> bytes:
        while time.monotonic() < over:
            time.sleep(0.01)
        return b""

    monkeypatch.setattr(slow, "_get", hang)
    with pytest.raises(TransportError, match="longer than"):
        await slow.get(Ref("a" * 64, 5))
    assert slow._budget.taken == 5  # the thread still holds it
    slow.close()


async def test_tensors_above_the_limit_travel_as_references_and_come_back(blobs: Blobs) -> None:
    large, small = np.random.default_rng(1).random((4, 1000)), np.zeros((4, 1))
    tensors = [Tensor.from_numpy("large", large), Tensor.from_numpy("small", small)]
    stored = await blobs.store(tensors, each=1024, total=10_000)
    assert [tensor.ref is None for tensor in stored] == [False, True]
    assert stored[0].size == large.nbytes
    assert not stored[0].data
    restored = await blobs.restore(stored)
    np.testing.assert_array_equal(restored[0].to_numpy(), large)
    assert restored[1] is stored[1]


async def test_a_lost_tensor_is_named(blobs: Blobs) -> None:
    lost = Tensor("image", "UINT8", (1, 5_000), ref=Ref("b" * 64, 5_000))
    with pytest.raises(PayloadLost, match=r"tensor 'image' \(5,000 bytes in the store\): it is not in the store"):
        await blobs.restore([lost])


@given(st.lists(st.integers(0, 400_000), max_size=12), st.integers(1024, 262_144))
def test_what_is_left_inline_fits_and_nothing_is_stored_in_vain(sizes: list[int], each: int) -> None:
    total = 262_144
    chosen = to_be_stored(sizes, each=each, total=total)
    left = sum(size for index, size in enumerate(sizes) if index not in chosen)
    assert left + ENVELOPE_BYTES <= total
    by_need = [sizes[index] for index in chosen if sizes[index] <= each]
    assert not by_need or left + min(by_need) + ENVELOPE_BYTES > total


# --- the sweep --------------------------------------------------------------------------------------------------------


def grow_old(path: Path, seconds: float) -> None:
    then = SystemClock().unix_ms() / 1000 - seconds
    os.utime(path, (then, then))


async def test_the_sweep_deletes_what_is_too_old_and_nothing_that_is_not_ours(files: Blobs, root: Path) -> None:
    old, young, again = [await files.put(data, tenant="acme") for data in (b"old", b"young", b"again")]
    for ref in (old, again):
        grow_old(object_of(root, ref, "acme"), 100_000)
    draft = object_of(root, old, "acme").with_name(f"{old.digest}.{'0' * 16}")
    strange = root / "acme" / "notes.txt"
    for path in (draft, strange):
        path.write_bytes(b"left")
        grow_old(path, 100_000)
    await files.put(b"again", tenant="acme")  # used again: it is young again
    assert await files.sweep(dry_run=True) == Swept(2, 7, 2)
    assert await files.sweep() == Swept(2, 7, 2)
    assert strange.exists()
    assert not draft.exists()
    assert await files.get(young, tenant="acme") == b"young"
    assert await files.get(again, tenant="acme") == b"again"
    with pytest.raises(PayloadLost):
        await files.get(old, tenant="acme")


async def test_any_store_can_be_swept(blobs: Blobs) -> None:
    await blobs.put(b"one")
    assert await blobs.sweep(3600) == Swept(0, 0, 1)
    assert await blobs.sweep(-5) == Swept(1, 3, 0)


async def test_an_empty_store_is_swept_of_nothing(blobs: Blobs) -> None:
    assert await blobs.sweep() == Swept(0, 0, 0)


def test_objects_outlive_every_request_that_refers_to_them() -> None:
    shortest = min(m.ge for m in BlobSettings.model_fields["keep_seconds"].metadata if hasattr(m, "ge"))
    assert shortest >= MAX_TTL_MS / 1000 + 3600


# --- the budget -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 150), st.booleans()), max_size=30))
def test_the_budget_is_never_exceeded_and_nobody_is_forgotten(takers: list[tuple[int, bool]]) -> None:
    asyncio.run(take_and_leave(takers))


async def take_and_leave(takers: list[tuple[int, bool]]) -> None:
    budget, served = ByteBudget(100), 0
    held: list[int] = []

    async def take(size: int) -> None:
        nonlocal served
        await budget.take(size)
        held.append(size)
        assert sum(held) <= 100 or [s for s in held if s] == [size]
        try:
            await asyncio.sleep(0)
        finally:
            held.remove(size)
            budget.give(size)
        served += 1

    tasks = [asyncio.get_running_loop().create_task(take(size)) for size, _ in takers]
    await asyncio.sleep(0)
    for task, (_, leaves) in zip(tasks, takers, strict=True):
        if leaves:
            task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert served == sum(end is None for end in ends)
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
