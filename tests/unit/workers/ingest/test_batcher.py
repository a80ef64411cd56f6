"""A batcher between a log and an engine in virtual time: whatever happens, every request has one outcome."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from contracts.adapters.kafka import Partition, Record
from contracts.messages import Receipt, Status
from contracts.specs import ModelSpec
from contracts.tensors import Tensor
from workers.draining.claim import Claim
from workers.ingest.batcher import Batcher
from workers.ingest.delivery import LANES, NORMAL, Delivery, Origin, Place
from workers.ingest.launcher import Launcher
from workers.ingest.suspects import Suspects
from workers.link import Batch, Done, Failed, Region
from workers.slots import SLOT_COUNT, SlotFile

SIDE = [{"name": "x", "datatype": "INT64", "shape": [-1, 1]}]
POISON, KILLER = -1, -2


class At(NamedTuple):
    """As much of a record as this needs."""

    offset: int
    key: bytes | None


class LoopClock:
    """The event loop's own time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def unix_ms(self) -> int:
        return 0


class Journal:
    """Keeps nothing, and takes its time."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None

    async def suspect(self, _: Any) -> None:
        await asyncio.sleep(0.001)


class World:
    """One model's batcher, an engine, and three partitions."""

    device, has_room, way_back_seconds = "cpu", True, 0.0

    def __init__(self, seed: int, folder: Path, **batching: Any) -> None:
        self.dice, self.clock = random.Random(seed), LoopClock()
        spec = ModelSpec.model_validate(
            {
                "name": "m",
                "version": 1,
                "backend": "python",
                "handler": "m:M",
                "inputs": SIDE,
                "outputs": [SIDE[0] | {"name": "y"}],
                "batching": {"max_batch_size": 8} | batching,
            }
        )
        self.slots = SlotFile.create(folder / "slots", SLOT_COUNT, 4096, 4096)
        self.memory_rows, self.is_trusted = self.dice.choice((3, 8, 8)), True
        self.cancelled: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.ends: dict[str, str] = {}
        self.asked: dict[str, list[int]] = {}
        self.owners: dict[str, Claim] = {}
        self.claims = [Claim(Partition("t", number), 0) for number in range(3)]
        self.launcher = Launcher(self.slots, self.clock, lambda: self.is_trusted)
        self.suspects = Suspects(cast("Any", Journal()), lambda: self.is_trusted)
        self.batcher = Batcher(
            spec,
            self.launcher,
            clock=self.clock,
            responder=cast("Any", self),
            send=cast("Any", self.run),
            is_trusted=lambda: self.is_trusted,
            cancelled=cast("Any", self.cancelled),
            suspects=self.suspects,
            worker="w",
        )
        self.engine: list[asyncio.TimerHandle] = []
        self.free_at = 0.0
        self.deaths = self.begun_late = 0

    # --- requests -----------------------------------------------------------------------------------------------------

    def put(self, values: list[int], ttl: float, key: bytes | None = None) -> None:
        claim = self.dice.choice(self.claims)
        if claim.giving:
            return
        now, offset, name = self.clock.monotonic(), claim.tracker.expected, f"r{len(self.asked)}"
        claim.tracker.receive(offset)
        claim.open += 1
        self.asked[name] = values
        self.owners[name] = claim
        self.batcher.put(
            Delivery(
                Origin(claim, cast("Record", At(offset, key)), name, None),
                inputs=(Tensor.from_numpy("x", np.array(values, np.int64).reshape(-1, 1)),),
                parameters={},
                rows=len(values),
                batch_key=None,
                taken=now,
                deadline=now + ttl,
                queued_us=0,
                lane=self.dice.choice((LANES["high"], NORMAL, LANES["low"])),
            )
        )

    def give(self, claim: Claim) -> None:
        claim.giving = True
        self.batcher.drop(lambda delivery: delivery.origin.claim is claim)

    def unanswered(self) -> list[str]:
        """Requests that nobody will answer: their partitions were not given away."""
        return [name for name, claim in self.owners.items() if not claim.giving and name not in self.ends]

    def is_over(self) -> bool:
        return not any(claim.open for claim in self.claims)

    # --- the engine ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        self.free_at = max(self.free_at, loop.time()) + 0.002 + 0.0002 * batch.rows
        self.engine.append(loop.call_at(self.free_at, self.end, batch))

    def end(self, batch: Batch) -> None:
        view = self.slots.input(batch.slot)
        x = np.ndarray((batch.rows, 1), np.int64, view, batch.inputs[0].offset)
        if KILLER in x:
            self.deaths += 1
            for timer in self.engine:
                timer.cancel()
            self.engine.clear()
            self.free_at = 0.0
            self.launcher.engine_lost()
            asyncio.get_running_loop().call_later(0.01, self.launcher.pump)
        elif batch.rows > self.memory_rows:
            self.launcher.failed(Failed(batch.slot, batch.sequence, "memory", "full"))
        elif POISON in x:
            self.launcher.failed(Failed(batch.slot, batch.sequence, "error", "poison"))
        else:
            y = np.ndarray(x.shape, np.int64, self.slots.output(batch.slot))
            y[:] = 2 * x
            region = Region("y", "INT64", y.shape, 0, y.nbytes)
            self.launcher.done(Done(batch.slot, batch.sequence, (region,), 2000 + 200 * batch.rows))

    # --- outcomes -----------------------------------------------------------------------------------------------------

    def batch_answered(self) -> None:
        pass

    def _ended(self, delivery: Delivery, how: str) -> None:
        origin = delivery.origin
        self.outcomes[origin.request_id] += 1
        self.ends[origin.request_id] = how
        origin.claim.answered(origin.record.offset)

    def succeed(self, delivery: Delivery, outputs: tuple[Tensor, ...], _: Receipt, __: Place | None = None) -> None:
        values = outputs[0].to_numpy().ravel().tolist()
        assert values == [2 * value for value in self.asked[delivery.origin.request_id]]
        self._ended(delivery, "OK")

    def fail(self, delivery: Delivery, status: Status, _: str, *, retryable: bool = False) -> None:
        self._ended(delivery, status.value)

    def retry(self, delivery: Delivery, reason: str, _: str) -> None:
        self._ended(delivery, reason)

    def poison(self, delivery: Delivery, _: str) -> None:
        self._ended(delivery, "POISON")


async def live(world: World, turns: int) -> None:
    dice = world.dice
    clearing = asyncio.ensure_future(world.suspects.clear_loop(world.launcher.pump))  # noqa: TID251 - cancelled below
    for _ in range(turns):
        for _ in range(dice.choice((0, 1, 1, 3, 12))):
            values = [dice.randrange(100) for _ in range(dice.choice((1, 1, 1, 2, 5, 20)))]
            if dice.random() < 0.03:
                values[-1] = dice.choice((POISON, KILLER))
            world.put(values, dice.choice((0.004, 0.02, 30.0)), dice.choice((None, b"a", b"b")))
        world.launcher.pump()
        what = dice.random()
        if what < 0.02 and len([claim for claim in world.claims if not claim.giving]) > 1:
            world.give(dice.choice(world.claims))
        elif what < 0.06 and world.asked:
            world.cancelled.add(dice.choice(list(world.asked)))
        elif what < 0.09:
            world.is_trusted = not world.is_trusted
            world.launcher.pump()
        await asyncio.sleep(dice.choice((0.0, 0.0005, 0.003)))
    world.is_trusted = True
    world.launcher.pump()
    await asyncio.sleep(60)
    clearing.cancel()


@pytest.mark.looptime
@pytest.mark.parametrize("batching", [{}, {"order": "per_key"}, {"slo_ms": 20, "max_batch_delay_ms": 2}])
@pytest.mark.parametrize("seed", range(8))
async def test_every_request_has_one_outcome_and_nothing_is_left_behind(
    seed: int, batching: dict[str, Any], tmp_path: Path
) -> None:
    world = World(seed, tmp_path, **batching)
    await live(world, 300)
    assert max(world.outcomes.values()) == 1
    assert world.unanswered() == []
    assert world.is_over(), [claim.open for claim in world.claims]
    assert world.batcher.queue.rows == 0
    assert not world.batcher.queue
    assert world.launcher.is_idle
    assert world.launcher._pool.free == SLOT_COUNT
    world.slots.close()
