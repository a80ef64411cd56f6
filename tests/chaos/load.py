"""A constant load whose every answer is checked, and what a fault did to it.

Callers send rows to all partitions alike (a key per partition), and compare each answer with the hash of their row. So
a lost or exchanged answer is seen, and so is a partition that stood still; doubled ones are found in the log.
"""

from __future__ import annotations

import asyncio
import runpy
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from contracts.errors import HeadraceError
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, DeviceSpec, TopicSpec, WorkersSpec
from producer.client import InferenceClient

MODEL = ModelVersion("rowhash", 1)
FOLDER = Path(__file__).resolve().parents[2] / "deploy/fleet/models/rowhash/1"
PARTITIONS = 16
_row_hash = cast("Callable[[Any], Any]", runpy.run_path(str(FOLDER / "model.py"))["row_hash"])
_BEAT_SECONDS = 0.02  # a turn that comes later than this came late: the loop's own work between two is shorter
_TTL_SECONDS = 120.0  # far above any recovery: nothing may be excused by its deadline


def deployment(workers: int) -> DeploymentSpec:
    """The deployment that the load is sent to."""
    return DeploymentSpec(
        model=MODEL.model,
        version=MODEL.version,
        workers=WorkersSpec(min=workers, max=4),
        device=DeviceSpec(kind="cpu", compute=25, memory_mib=64),
        topic=TopicSpec(partitions=PARTITIONS),
        allow_code=True,
    )


def key_of(partition: int) -> bytes:
    """A key whose requests go to this partition."""
    return next(key for number in range(100_000) if zlib.crc32(key := b"%d" % number) % PARTITIONS == partition)


@dataclass
class Load:
    """What was sent and what came back. Times are monotonic seconds."""

    client: InferenceClient
    sent: int = 0
    answered: int = 0
    mixed: int = 0
    errors: list[str] = field(default_factory=list)
    answers: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When each partition answered."""
    pulses: list[float] = field(default_factory=list)
    """When this process itself had its turn."""
    _stopping: bool = False

    @property
    def lost(self) -> int:
        """Requests that were sent and neither answered nor refused."""
        return self.sent - self.answered - len(self.errors)

    def stall(self, since: float, until: float | None = None, partitions: Iterator[int] | None = None) -> float:
        """The longest time, in seconds, that one of the partitions gave no answer, by the callers' own clock.

        That clock hardly moves while this process waits for a core: who does not run can neither ask nor hear.
        """
        end = time.monotonic() if until is None else until
        lived = np.cumsum(np.minimum(np.diff(self.pulses, prepend=self.pulses[:1]), _BEAT_SECONDS))
        longest = 0.0
        for partition in partitions if partitions is not None else range(PARTITIONS):
            times = [since, *(at for at in self.answers[partition] if since <= at <= end), end]
            longest = max(longest, float(np.diff(np.interp(times, self.pulses, lived)).max()))
        return longest

    async def _pulse(self) -> None:
        while not self._stopping:
            self.pulses.append(time.monotonic())
            await asyncio.sleep(_BEAT_SECONDS / 4)

    async def _caller(self, number: int) -> None:
        random = np.random.default_rng(number)
        partition = number % PARTITIONS
        key = key_of(partition)
        while not self._stopping:
            row = random.random((1, 64), np.float32)
            self.sent += 1
            try:
                response = await self.client.infer(
                    MODEL.model, {"row": row}, version=MODEL.version, key=key, ttl_seconds=_TTL_SECONDS
                )
            except HeadraceError as exc:
                self.errors.append(f"{type(exc).__name__}: {exc}")
                await asyncio.sleep(0.01)
                continue
            self.answered += 1
            self.answers[partition].append(time.monotonic())
            if int.from_bytes(response.outputs[0].data, "little") != int(_row_hash(row)[0, 0]):
                self.mixed += 1

    @asynccontextmanager
    async def running(self, in_flight: int) -> AsyncIterator[None]:
        """Keep `in_flight` requests under way; afterwards every one of them has been answered."""
        loop = asyncio.get_running_loop()
        callers = [loop.create_task(self._caller(n), name=f"caller {n}") for n in range(in_flight)]
        pulse = loop.create_task(self._pulse(), name="pulse")
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*callers, pulse)
