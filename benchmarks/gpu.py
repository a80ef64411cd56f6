"""One GPU: its ceilings, the bare models on it, and how near the engine comes to them.

    python -m benchmarks.gpu [--models wide,encoder] [--seconds S]

Needs torch with CUDA and a device; without one it says so and ends with status 3. Writes <device>.json and README.md
under benchmarks/<device>/. It has not run on a device yet, so neither have its figures been seen.

    M0  ceilings: a matmul, and copies from pinned and from pageable memory
    M1  the bare model per batch size, on resident data: ms, rows/s
    M2  the engine process, two batches in flight, over M1
    M3  batching policies on a simulated device that is as fast as M1 says
    M4  batches one by one against two in flight
    M5  run as it is against replayed from a graph
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.batching_policies import Device
from benchmarks.gpu_models import BUCKETS, GpuModel, build
from benchmarks.gpu_report import Bucket, folder_name, knee, line, page
from benchmarks.policy_simulator import LOADS, compare
from tests.engine_process import EngineProcess
from workers.backends.base import CUDA, ModelContext
from workers.link import Done, Ready

NO_GPU: Final = 3
_ROUNDS: Final = 3
Row = dict[str, object]


def why_not() -> str:
    """Why nothing can be measured here; empty when it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed: install headrace with the extra gpu"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def per_run(run: Callable[[], object], settle: Callable[[], object], seconds: float) -> float:
    """Seconds of one run among many without a wait in between; the median of a few rounds."""
    run()
    settle()
    found = []
    for _ in range(_ROUNDS):
        runs, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds / _ROUNDS:
            for _ in range(10):
                run()
            settle()
            runs += 10
        found.append((time.perf_counter() - started) / runs)
    return statistics.median(found)


def ceilings(seconds: float) -> list[Row]:
    """M0."""
    import torch

    side, size = 8192, 1 << 28
    matrix = torch.randn(side, side, device=CUDA, dtype=torch.bfloat16)
    product = per_run(lambda: matrix @ matrix, torch.cuda.synchronize, seconds)
    target = torch.empty(size, dtype=torch.uint8, device=CUDA)
    rows: list[Row] = [{"what": "matmul BF16, TFLOP/s", "figure": 2 * side**3 / product / 1e12}]
    for name, host in (
        ("pinned", torch.empty(size, dtype=torch.uint8, pin_memory=True)),
        ("pageable", torch.empty(size, dtype=torch.uint8)),
    ):
        host.fill_(1)
        taken = per_run(partial(target.copy_, host, non_blocking=True), torch.cuda.synchronize, seconds)
        rows.append({"what": f"copy in, {name}, GB/s", "figure": size / taken / 1e9})
    return rows


def loaded(model: GpuModel) -> Any:
    """A model's backend on the GPU."""
    from workers.backends.pytorch import TorchBackend

    backend = TorchBackend()
    backend.load(ModelContext(model.spec, model.folder, 1, CUDA))
    return backend


def bare(model: GpuModel, seconds: float) -> list[Bucket]:
    """M1 and M5: each size on data that is on the device."""
    backend = loaded(model)
    pipeline = backend._pipeline  # noqa: SLF001 - the parts of a batch are measured one by one
    door, program = pipeline._door, pipeline._program  # noqa: SLF001 - the same
    captured = backend.capture([model.sample(rows) for rows in BUCKETS]).captured
    graphs = {shapes[0][0]: graph for shapes, graph in pipeline._graphs.items()}  # noqa: SLF001
    found = []
    for rows in BUCKETS:
        staged = [door.upload(array, is_bf16=False) for array in model.sample(rows).values()]
        door.settle()
        eager = per_run(partial(door.call, program, staged), door.settle, seconds)
        replayed = None
        if rows in captured:
            replayed = per_run(partial(door.replay, graphs[rows].graph), door.settle, seconds) * 1000
        found.append(Bucket(rows, eager * 1000, replayed))
    backend.close()
    return found


def overlap(model: GpuModel, rows: int, seconds: float) -> Row:
    """M4: whole batches, host to host, in pinned memory."""
    import torch

    backend = loaded(model)
    backend.capture([model.sample(rows)])
    sample = model.sample(rows)
    slots = [{name: torch.from_numpy(array).pin_memory().numpy() for name, array in sample.items()} for _ in range(2)]
    rates = {depth: rows / _in_flight(backend, slots, rows, depth, seconds) for depth in (1, 2)}
    backend.close()
    return {
        "model": model.spec.name,
        "rows": rows,
        "one_by_one": rates[1],
        "two": rates[2],
        "gain": rates[2] / rates[1],
    }


def _in_flight(backend: Any, slots: Sequence[Any], rows: int, depth: int, seconds: float) -> float:
    import torch

    first = backend.launch(slots[0], rows, {})
    rooms = [
        {name: torch.empty(a.shape, dtype=torch.float32, pin_memory=True).numpy() for name, a in first.outputs.items()}
        for _ in slots
    ]
    first.abandon()
    flying: deque[Any] = deque()
    batches, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        flight = backend.launch(slots[batches % 2], rows, {})
        flight.fetch(rooms[batches % 2])
        flying.append(flight)
        if len(flying) == depth:
            flying.popleft().wait()
        batches += 1
    for flight in flying:
        flight.wait()
    return taken / batches


def through_the_engine(model: GpuModel, rows: int, seconds: float) -> float:
    """M2: rows per second of an engine process that always has two batches."""
    with EngineProcess(model.folder, environment={"CUDA_VISIBLE_DEVICES": "0"}, patience=180) as engine:
        ready = engine.start(buckets=BUCKETS)
        assert isinstance(ready, Ready), ready
        sample = model.sample(rows)
        for slot in range(2):
            engine.submit(sample, slot=slot)
        batches, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            answer = engine.receive()
            assert isinstance(answer, Done), answer
            engine.submit(sample, slot=answer.slot)
            batches += 1
        assert all(isinstance(engine.receive(), Done) for _ in range(2))
    return rows * batches / taken


def simulated(name: str, buckets: Sequence[Bucket]) -> list[Row]:
    """M3."""
    fixed, per_row = line(buckets)
    device = Device(fixed=fixed, per_row=per_row, max_rows=knee(buckets).rows)
    return [{"model": name, **outcome.row()} for load in LOADS for outcome in compare(load, seconds=5, device=device)]


def measure(names: Sequence[str], seconds: float) -> dict[str, list[Row]]:
    """All of it."""
    found: dict[str, list[Row]] = {"M0": ceilings(seconds), "M1": [], "M2": [], "M3": [], "M4": [], "M5": []}
    for name in names:
        model = build(name, Path("build/models").absolute())
        buckets = bare(model, seconds)
        best = knee(buckets)
        for bucket in buckets:
            row: Row = {"model": name, "rows": bucket.rows}
            found["M1"].append(row | {"ms": bucket.best_ms, "rows_per_s": bucket.rows_per_s, "knee": bucket == best})
            found["M5"].append(
                row | {"eager_ms": bucket.eager_ms, "graph_ms": bucket.graph_ms, "gain": bucket.graph_gain}
            )
        rate = through_the_engine(model, best.rows, 3 * seconds)
        ratio = rate / best.rows_per_s
        found["M2"].append(
            {"model": name, "rows": best.rows, "rows_per_s": rate, "bare": best.rows_per_s, "ratio": ratio}
        )
        found["M3"] += simulated(name, buckets)
        found["M4"].append(overlap(model, best.rows, 3 * seconds))
    return found


def main() -> int:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="wide,encoder", help="which, separated by commas")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each measurement")
    arguments = parser.parse_args()
    fault = why_not()
    if fault:
        print(f"bench-gpu measures a GPU, and there is none to use: {fault}", file=sys.stderr)
        return NO_GPU
    import torch

    device = torch.cuda.get_device_name(0)
    results = measure(arguments.models.split(","), arguments.seconds)
    folder = Path(__file__).resolve().parent / folder_name(device)
    folder.mkdir(exist_ok=True)
    raw = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, "numpy": np.__version__, **results}
    (folder / f"{folder_name(device)}.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    text = page(device, results)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
