from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from contracts.pool import Device, PoolState
from scheduler.filters import Ask, ask_of, grant_of, refusal
from scheduler.scoring import Board
from tests.unit.scheduler.fleet_model import cpu, gpu, node, spec


@pytest.mark.parametrize(
    ("device", "kinds"),
    [
        ({"kind": "cpu"}, ("cpu",)),
        ({"kind": "gpu"}, ("gpu", "mig")),
        ({"kind": "any"}, ("gpu", "mig", "cpu")),
        ({"kind": "gpu", "fallback": "cpu"}, ("gpu", "mig", "cpu")),
    ],
)
def test_the_kinds_that_will_do_follow_from_kind_and_fallback(device: dict[str, Any], kinds: tuple[str, ...]) -> None:
    assert ask_of(spec(**device)).kinds == kinds


@pytest.mark.parametrize(
    ("device", "state", "words"),
    [
        (cpu(), "ready", "is a cpu, wanted is gpu"),
        (gpu("a"), "suspect", "node n1 is suspect"),
        (gpu("a", health="unhealthy"), "ready", "is unhealthy"),
        (gpu("a", memory_mib=1_000), "ready", "1000 MiB"),
        (gpu("a", compute_used=90, lease_count=1, mode="slice"), "ready", "10 % compute left"),
        (gpu("a", lease_count=4, mode="slice"), "ready", "no lease slot left"),
        (gpu("a", lease_count=1, mode="whole"), "ready", "mode whole"),
    ],
)
def test_each_refusal_says_why(device: Device, state: str, words: str) -> None:
    ask = Ask(("gpu",), 25, 2_000, is_whole=False)
    answer = refusal(node("n1", state), device, ask)  # type: ignore[arg-type]
    assert words in str(answer)


def test_a_device_of_an_unknown_node_is_refused() -> None:
    assert "unknown" in str(refusal(None, cpu(), Ask(("cpu",), 1, 1, is_whole=False)))


def test_a_whole_device_that_is_too_small_is_refused() -> None:
    ask = Ask(("gpu",), 1, 200_000, is_whole=True)
    assert "wanted are 200000" in str(refusal(node(), gpu("a"), ask))


def test_whole_means_a_gpu_and_never_all_cores() -> None:
    ask = Ask(("gpu", "cpu"), 25, 256, is_whole=True)
    assert grant_of(ask, gpu("a"))[0].compute == 100
    share, mode = grant_of(ask, cpu())
    assert (share.compute, share.memory_mib, mode) == (25, 256, "cpu")


@st.composite
def boards(draw: st.DrawFn) -> PoolState:
    nodes = {f"n{i}": node(f"n{i}", draw(st.sampled_from(["ready", "ready", "suspect"]))) for i in range(3)}
    devices = [
        gpu(
            f"{index}", f"n{index % 3}", memory_mib=4_000, health=draw(st.sampled_from(["ok", "degraded", "lost"])),
            compute_used=draw(st.integers(0, 100)), memory_used_mib=draw(st.integers(0, 4_000)),
            lease_count=draw(st.integers(1, 4)), mode="slice",
        )
        for index in range(draw(st.integers(0, 8)))
    ] + [cpu(f"n{i}", memory_mib=4_000, compute_used=draw(st.integers(0, 400))) for i in range(3)]  # fmt: skip
    return PoolState(nodes=nodes, devices={device.id: device for device in devices})


asks = st.builds(
    Ask,
    st.sampled_from([("cpu",), ("gpu", "mig"), ("gpu", "mig", "cpu")]),
    st.integers(1, 100),
    st.integers(1, 3_000),
    is_whole=st.booleans(),
)


@given(pool=boards(), wishes=st.lists(asks, max_size=12), is_spread=st.booleans())
def test_the_board_offers_the_best_device_that_fits_and_none_only_when_none_fits(
    pool: PoolState, wishes: list[Ask], *, is_spread: bool
) -> None:
    board = Board(pool)
    devices = dict(pool.devices)
    siblings = {"n0": 2, "n1": 1} if is_spread else {}
    for ask in wishes:
        fitting = [d for d in devices.values() if refusal(pool.nodes[d.node], d, ask) is None]
        best = min(fitting, key=lambda d: rank(d, ask, siblings), default=None)
        found = board.find(ask, siblings)
        assert found == best
        if found is not None:
            share, mode = grant_of(ask, found)
            board.take(found, share, mode)
            devices[found.id] = taken(found, share.memory_mib, share.compute, mode)


def rank(device: Device, ask: Ask, siblings: dict[str, int]) -> tuple[object, ...]:
    return (
        ask.kinds.index(device.kind), device.health != "ok", siblings.get(device.node, 0), device.compute_free,
        device.memory_free_mib, device.id,
    )  # fmt: skip


def taken(device: Device, memory_mib: int, compute: int, mode: str) -> Device:
    return structs.replace(
        device, memory_used_mib=device.memory_used_mib + memory_mib, compute_used=device.compute_used + compute,
        lease_count=device.lease_count + 1, mode=mode,
    )  # fmt: skip
