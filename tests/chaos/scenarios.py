"""What is done to the fleet while the load runs; each returns what a row of the report says."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from confluent_kafka.admin import AdminClient

from benchmarks.harness import wait_for_workers
from contracts import keys, topics
from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import Registry
from deploy.embedded.processes import Server
from deploy.embedded.stack import EmbeddedStack
from tests.chaos.load import MODEL, Load
from tests.helpers import wait_until

STEADY_SECONDS = 1.0  # of undisturbed load before a fault, so that its effect can be told from the start's
_WHOLE_SECONDS = 60.0


@dataclass(frozen=True)
class Fleet:
    """What the scenarios act on."""

    stack: EmbeddedStack
    kafka: Server
    redis: RedisDoor
    registry: Registry
    leases: Leases
    load: Load

    async def owners(self) -> dict[int, str]:
        """Who drains each partition."""
        topic = topics.requests("headrace", MODEL.model, MODEL.version)
        state = await self.leases.state()
        return {partition: lease for partition, (lease, _) in state.topics[topic].own.items()}


Figures = dict[str, object]
Observe = Callable[[Fleet], Awaitable[str]]


async def scale(fleet: Fleet, _repeats: int) -> Figures:
    """1 → 4 → 1 workers: partitions that stay where they are must not notice."""
    stalls, seconds = [], []
    await asyncio.sleep(STEADY_SECONDS)
    for count in (4, 1):
        before, started = await fleet.owners(), time.monotonic()
        await fleet.registry.set_manual(MODEL, count, "chaos")
        seconds.append(await wait_for_workers(fleet.leases, MODEL, count))
        await asyncio.sleep(STEADY_SECONDS)
        after = await fleet.owners()
        unmoved = [partition for partition, lease in after.items() if before.get(partition) == lease]
        stalls.append(fleet.load.stall(started, partitions=iter(unmoved)))
    return {"scaled_s": max(seconds), "unmoved_stall_ms": round(max(stalls) * 1000)}


async def kill_worker(fleet: Fleet, repeats: int) -> Figures:
    """SIGKILL both processes of one of two workers."""

    async def kill() -> None:
        fleet.stack.kill_worker(random.choice(sorted(set((await fleet.owners()).values()))))

    return await _repeat(fleet, repeats, kill, _whole)


async def kill_engine(fleet: Fleet, repeats: int) -> Figures:
    """SIGKILL one engine; its ingest keeps the partitions and runs the suspects alone."""

    async def kill() -> None:
        lease = random.choice(sorted(set((await fleet.owners()).values())))
        fleet.stack.kill_engine(lease)

    return await _repeat(fleet, repeats, kill, _whole)


async def kill_agent(fleet: Fleet, repeats: int) -> Figures:
    """SIGKILL the node agent; its workers go on and the next agent adopts them."""

    async def kill() -> None:
        fleet.stack.kill("agent")

    return await _repeat(fleet, repeats, kill, _until_changed, _incarnation)


async def kill_scheduler(fleet: Fleet, repeats: int) -> Figures:
    """SIGKILL the scheduler; workers drain on, the next one leads."""

    async def kill() -> None:
        fleet.stack.kill("scheduler")

    return await _repeat(fleet, repeats, kill, _until_changed, _term)


async def kill_broker(fleet: Fleet, repeats: int) -> Figures:
    """SIGKILL one broker of several, in turn, and start it again."""
    children = fleet.kafka.children
    turn = iter(range(repeats))

    async def kill() -> None:
        children[next(turn) % len(children)].kill()

    async def all_run(_fleet: Fleet, _observe: Observe, _before: str) -> None:
        await asyncio.to_thread(fleet.kafka.start)
        admin = AdminClient({"bootstrap.servers": fleet.kafka.address})
        # Or the next kill takes a partition's last replica.
        await wait_until(lambda: asyncio.to_thread(_are_in_sync, admin), "replicas lag behind", timeout=_WHOLE_SECONDS)

    return await _repeat(fleet, repeats, kill, all_run)


def _are_in_sync(admin: AdminClient) -> bool:
    found = admin.list_topics(timeout=5).topics.values()
    return all(len(one.isrs) == len(one.replicas) for topic in found for one in topic.partitions.values())


async def _term(fleet: Fleet) -> str:
    """The leader's term: it rises whenever another process begins to lead."""
    return str(await fleet.redis.command("HGET", keys.pool(fleet.redis.prefix, "default") + ":leader", "term"))


async def _incarnation(fleet: Fleet) -> str:
    """Of the only node: it rises whenever another agent begins to speak for it."""
    return str([node.incarnation for node in (await fleet.leases.state()).nodes.values()])


async def _until_changed(fleet: Fleet, observe: Observe, before: str) -> None:
    while await observe(fleet) == before:
        await asyncio.sleep(0.02)


async def _whole(fleet: Fleet, _observe: Observe, _before: str) -> None:
    """Wait until both workers are active and every partition is in the hands of the one that is wanted."""
    await asyncio.sleep(0.3)  # what was just killed is not noticed yet
    await wait_for_workers(fleet.leases, MODEL, 2)


async def _repeat(
    fleet: Fleet,
    repeats: int,
    fault: Callable[[], Awaitable[None]],
    recovered: Callable[[Fleet, Observe, str], Awaitable[None]],
    observe: Observe = _incarnation,
) -> Figures:
    stalls, recoveries = [], []
    for _ in range(repeats):
        await asyncio.sleep(STEADY_SECONDS)
        before, started = await observe(fleet), time.monotonic()
        await fault()
        async with asyncio.timeout(_WHOLE_SECONDS):
            await recovered(fleet, observe, before)
        recoveries.append(time.monotonic() - started)
        await asyncio.sleep(STEADY_SECONDS)
        stalls.append(fleet.load.stall(started))
    return {
        "faults": repeats,
        "recovery_p50_s": sorted(recoveries)[len(recoveries) // 2],
        "recovery_max_s": max(recoveries),
        "stall_max_ms": round(max(stalls) * 1000),
    }


SCENARIOS: dict[str, tuple[int, Callable[[Fleet, int], Awaitable[Figures]]]] = {
    "scale": (1, scale),
    "kill-worker": (2, kill_worker),
    "kill-engine": (2, kill_engine),
    "kill-agent": (2, kill_agent),
    "kill-scheduler": (2, kill_scheduler),
    "kill-broker": (2, kill_broker),
}
"""Name → workers at the start, and what is done."""
