"""Load on a running stack, and what came of it.

Closed loop: a fixed number of callers, each of which asks again as soon as it is answered; what a service under steady
use sees. The client is one asyncio process that shares the machine with everything else, as it would on a laptop, and
its processor time is reported beside the servers'. Every row is compared with what the model must answer where the
benchmark knows it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy.typing as npt

from benchmarks.engine_models import Arrays, BenchModel
from benchmarks.harness import percentile
from contracts.messages import Receipt, Response
from contracts.service import settle_heap
from producer.client import InferenceClient

TTL_SECONDS = 120.0
_SAMPLES = 512


class Answer(NamedTuple):
    """When a response came, how long it took, and its receipt."""

    at: float
    seconds: float
    receipt: Receipt


class Window(NamedTuple):
    """The answers of a steady state."""

    in_flight: int
    seconds: float
    answers: list[Answer]
    cpu: dict[str, float]
    """Processor seconds by process."""

    @property
    def rows_per_s(self) -> float:
        """Answered rows per second."""
        return len(self.answers) / self.seconds

    def latency_ms(self, percent: float) -> float:
        """A percentile of what callers waited."""
        return percentile([answer.seconds for answer in self.answers], percent) * 1000

    def part_ms(self, part: str) -> float:
        """Median of a part of the receipts: `queued`, `batched`, `computed` or `returned`."""
        return percentile([getattr(answer.receipt, f"{part}_us") / 1000 for answer in self.answers], 50)

    def batches(self) -> dict[int, int]:
        """How many batches there were of each size."""
        rows = Counter(answer.receipt.batch_rows for answer in self.answers)
        return {size: max(1, round(count / size)) for size, count in sorted(rows.items()) if size}

    def cuts(self) -> dict[str, int]:
        """Why rows' batches were cut, in percent of the rows."""
        found = Counter(answer.receipt.cut for answer in self.answers)
        return {reason: round(100 * count / len(self.answers)) for reason, count in found.most_common()}

    def cpu_us(self, *processes: str) -> float:
        """Processor microseconds per answer of some processes."""
        return sum(self.cpu.get(name, 0.0) for name in processes) / max(1, len(self.answers)) * 1e6


class ClosedLoop:
    """Callers that ask one row each."""

    def __init__(self, client: InferenceClient, model: BenchModel) -> None:
        self._client = client
        self._name, self._version = model.spec.name, model.spec.version
        rows = model.sample(_SAMPLES)
        self._inputs: list[Arrays] = [
            {name: values[index : index + 1] for name, values in rows.items()} for index in range(_SAMPLES)
        ]
        self._echoes = model.spec.name == "sim"
        self._numbers = itertools.count()
        self._is_over = False
        self.mixed = 0
        """Rows that were not answered with themselves by a model that does nothing else."""

    async def _call_on(self, answers: list[Answer]) -> None:
        while not self._is_over:
            inputs = self._inputs[next(self._numbers) % _SAMPLES]
            started = time.perf_counter()
            response = await self._client.infer(self._name, inputs, version=self._version, ttl_seconds=TTL_SECONDS)
            ended = time.perf_counter()
            answers.append(Answer(ended, ended - started, response.receipt))
            if self._echoes and not _is_same(response, inputs["row"]):
                self.mixed += 1

    async def run(
        self, in_flight: int, warm_seconds: float, seconds: float, cpu: Callable[[], dict[str, float]]
    ) -> Window:
        """Keep `in_flight` requests under way; the answers of `seconds` after `warm_seconds`.

        Answers come a batch at a time, so the window opens and closes with the first answer of a batch: it holds whole
        batches and the whole time they took.
        """
        answers: list[Answer] = []
        self._is_over = False
        settle_heap()  # as our own services do; what this collects must not be walked again and again
        callers = asyncio.gather(*(self._call_on(answers) for _ in range(in_flight)))
        try:
            first, before = await self._edge(answers, warm_seconds), cpu()
            last, after = await self._edge(answers, seconds), cpu()
        finally:
            self._is_over = True
        await callers
        used = {name: after[name] - before.get(name, 0.0) for name in after}
        return Window(in_flight, answers[last].at - answers[first].at, answers[first:last], used)

    @staticmethod
    async def _edge(answers: list[Answer], seconds: float) -> int:
        """The index of the first answer that comes after a pause of `seconds`."""
        await asyncio.sleep(seconds)
        index = len(answers)
        while len(answers) == index:  # noqa: ASYNC110 - an event would have to be set for each of all the answers
            await asyncio.sleep(0.001)
        return index


def _is_same(response: Response, row: npt.NDArray[Any]) -> bool:
    return bytes(response.outputs[0].data) == row.tobytes()
