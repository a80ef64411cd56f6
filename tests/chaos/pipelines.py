"""Jobs of two shapes while workers, joiners and the scheduler are killed, and what the log says about it afterwards.

    chain   three steps, one after the other
    fan     one step, then four, then a join
    moves   the same, while joiners are killed, and made more and fewer so that partitions of parts change hands

Every job must end in exactly one answer with its own values; whatever ran twice must have made the same ids; and when
all is over, joiners must have settled every part, and Redis must have forgotten the jobs: their plans live for a minute
here, instead of a day.
"""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from contracts import keys
from contracts.adapters.redis import RedisDoor
from contracts.codec import decode_headers
from contracts.errors import HeadraceError
from contracts.names import ModelVersion
from contracts.plans import child_id
from contracts.settings import HeadraceSettings, KafkaSettings, load_settings
from deploy.cli.history import scan
from deploy.cli.lag import Lags
from producer.client import InferenceClient
from producer.settings import ClientSettings
from tests.chaos import history
from tests.e2e.pipeline_kit import CHAIN, FAN, PipelineFleet, pipeline_fleet, row

Figures = dict[str, object]
KILL_SECONDS = 7.0
SPREAD_SECONDS = 75.0  # over which the jobs are submitted: ten kills fall into it
JOBS = 5000
_TTL_SECONDS = 180.0  # far above any recovery: nothing may be excused by its deadline
_SETTLED_SECONDS = 90.0  # finished joins are remembered for a lease's ttl and a handover
_PLAN_SECONDS = 60.0
# Each shape's answer has a tensor and the value that 0 becomes in it.
SHAPES = {"chain": (CHAIN, "row", 3), "fan": (FAN + "workers: {min: 1, max: 4}\n", "head", 1)}
_OF_LEASES = re.compile(r":(ended|lease|dev:[^:]+:leases|node:[^:]+:leases|flights|demands?)(:|$)")
Harm = Callable[[PipelineFleet, str], Awaitable[str]]


async def pipeline(
    shape: str, jobs: int, in_flight: int, kill_seconds: float = KILL_SECONDS, harm: Harm | None = None
) -> Figures:
    """Run so many jobs of one shape under kills; the row of the report."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        env = {"HEADRACE_REDIS__PLAN_SECONDS": str(_PLAN_SECONDS)}
        async with pipeline_fleet(Path(folder), env=env) as fleet:
            await fleet.apply(SHAPES[shape][0])
            before = await _keys(fleet)
            async with _client(fleet) as client:
                figures = await _load(fleet, client, shape, jobs, in_flight, (kill_seconds, harm or _kill))
            return {**figures, **await _history(fleet, shape, figures), "keys_left": await _keys_left(fleet, before)}


def _client(fleet: PipelineFleet) -> InferenceClient:
    """One that stores plans for as long as the others do."""
    stack = fleet.stack
    redis: dict[str, object] = {"url": stack.redis_url, "plan_seconds": _PLAN_SECONDS}
    kafka, inbox = {"bootstrap": stack.kafka_bootstrap}, {"name": "chaos"}
    return InferenceClient(load_settings(ClientSettings, None, kafka=kafka, redis=redis, inbox=inbox))


async def _load(
    fleet: PipelineFleet, client: InferenceClient, shape: str, jobs: int, in_flight: int, how: tuple[float, Harm]
) -> Figures:
    _, tensor, added = SHAPES[shape]
    errors, mixed, answered, started = list[str](), 0, 0, time.monotonic()
    numbers = iter(range(jobs))

    async def caller() -> None:
        nonlocal mixed, answered
        for number in numbers:
            await asyncio.sleep(max(0.0, started + number * SPREAD_SECONDS / jobs - time.monotonic()))
            try:
                answer = await client.infer(shape, {"row": row(number)}, ttl_seconds=_TTL_SECONDS)
            except HeadraceError as exc:
                errors.append(f"{type(exc).__name__}: {exc}")
                continue
            answered += 1
            mixed += int(answer[tensor].to_numpy()[0, 1] != number + added)

    harmed = await _harming(fleet, shape, how, [caller] * in_flight)
    seconds = time.monotonic() - started
    stats = client.stats()
    for error in errors[:3]:
        print(f"{shape}: a caller saw {error}")
    return {
        "requests": jobs,
        "lost": jobs - answered - len(errors),
        "answered": answered,
        "mixed": mixed,
        "errors": len(errors),
        "repeats": stats.duplicate + stats.late,
        "faults": sum(harmed.values()),
        "what": " ".join(f"{name} {count}" for name, count in sorted(harmed.items())),
        "seconds": seconds,
    }


async def _harming(
    fleet: PipelineFleet, shape: str, how: tuple[float, Harm], callers: list[Callable[[], Awaitable[None]]]
) -> Counter[str]:
    """Run the callers to their end, and do harm every few seconds meanwhile."""
    (seconds, harm), harmed = how, Counter[str]()
    load = asyncio.gather(*(caller() for caller in callers))
    while not load.done():
        await asyncio.wait([load], timeout=seconds)
        if not load.done():
            harmed[await harm(fleet, shape)] += 1
    await load
    return harmed


async def _kill(fleet: PipelineFleet, shape: str) -> str:
    """SIGKILL a random worker, joiner or the scheduler."""
    state = await fleet.leases.state()
    leases = [lease for lease in state.leases.values() if lease.state == "active"]
    chosen: Any = random.choice([*leases, None])
    if chosen is None:
        fleet.stack.kill("scheduler")
        return "scheduler"
    fleet.stack.kill_worker(chosen.id)
    return "joiner" if chosen.deployment == f"{shape}@1" else "worker"


async def _move(fleet: PipelineFleet, shape: str) -> str:
    """Have more or fewer joiners, or SIGKILL one."""
    if random.random() < 0.5:
        await fleet.registry.set_manual(ModelVersion(shape, 1), random.choice([1, 2, 3, 4]), "chaos")
        return "scaled"
    state = await fleet.leases.state()
    joiners = [lease.id for lease in state.leases.values() if lease.deployment == f"{shape}@1"]
    return "joiner" if joiners and fleet.stack.kill_worker(random.choice(joiners)) else "nothing"


async def _history(fleet: PipelineFleet, shape: str, figures: Figures) -> Figures:
    """What the log says: ids that do not follow from their place, steps that ran again, answers and held parts."""
    settings = HeadraceSettings(kafka=KafkaSettings(bootstrap=fleet.stack.kafka_bootstrap)).kafka
    held = await _held(settings, ModelVersion(shape, 1))
    found = await scan(settings, lambda topic: topic.startswith("headrace.requests.relay."), _is_step, since_ms=0)
    wrong, asked = 0, Counter[str]()
    for record in found.records:
        headers = decode_headers(record.headers)
        hop = headers.hop
        assert hop is not None
        wrong += headers.id != child_id(hop.job, hop.step, hop.branch)
        asked[headers.id] += 1

    def runs(job: str) -> int:
        """A chain's last step runs as often as it is asked. A fan's joins are fired once more after each fault."""
        return asked[child_id(job, "three", ())] if shape == "chain" else 1 + int(str(figures["faults"]))

    finals = await history.read_finals(settings, "chaos", since_ms=0)
    return {
        "doubled": history.judge(shape, finals, int(str(figures["answered"])), runs),
        "wrong_ids": wrong,
        "asked_again": sum(count - 1 for count in asked.values()),
        "held": held,
    }


def _is_step(_: object, headers: dict[str, bytes]) -> bool:
    return "step" in headers


async def _held(settings: KafkaSettings, key: ModelVersion) -> int:
    """Records of the pipeline's own topics that are still not committed after the time for which joins are kept."""
    lags = Lags(settings)
    try:
        until = time.monotonic() + _SETTLED_SECONDS
        while True:
            held = [*(await lags.read({key: 4})).values(), *(await lags.read_joins({key: 4})).values()]
            left = sum(count if count is not None else 1 for count in held)
            if not left or time.monotonic() > until:
                return left
            await asyncio.sleep(0.5)
    finally:
        await lags.close()


async def _keys(fleet: PipelineFleet) -> set[str]:
    """All keys in Redis but those of leases: workers come and go, and are asked for, whatever jobs there are."""
    async with await RedisDoor.open(fleet.stack.redis_url) as redis:
        found = await redis.command("KEYS", f"{keys.DEFAULT_PREFIX}:*")
    return {key for key in found if not _OF_LEASES.search(key)}


async def _keys_left(fleet: PipelineFleet, before: set[str]) -> int:
    """Keys that the jobs have brought, and that are still there when their plans' time is over."""
    until = time.monotonic() + _PLAN_SECONDS + 30.0
    while (left := await _keys(fleet) - before) and time.monotonic() < until:
        await asyncio.sleep(1.0)
    for key in sorted(left):
        print(f"left behind: {key}")
    return len(left)


async def chain(jobs: int, in_flight: int) -> Figures:
    """A chain of three steps."""
    return await pipeline("chain", jobs, in_flight)


async def fan(jobs: int, in_flight: int) -> Figures:
    """One step, four behind it, and their join."""
    return await pipeline("fan", jobs, in_flight)


async def moves(jobs: int, in_flight: int) -> Figures:
    """The fan, while its joiners die, and become more and fewer."""
    return await pipeline("fan", jobs, in_flight, KILL_SECONDS / 2, _move)


PIPELINES: dict[str, Callable[[int, int], Awaitable[Figures]]] = {
    "pipeline-chain": chain,
    "pipeline-fan": fan,
    "pipeline-moves": moves,
}
"""Name → what is done with so many jobs."""
