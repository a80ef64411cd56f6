"""What a batch costs besides its model: frame, slot, launcher and back, against a real engine process.

    python -m benchmarks.engine_round_trip [--batches N]

The model is `rowhash`, whose own time is measured here too, in this process, and printed beside the round trip. One
batch at a time shows what an idle worker adds; two in flight show what the engine costs when it is kept busy. Writes
build/bench/engine_round_trip.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path

import numpy as np

from tests.engine_process import MODELS, ROOT, EngineProcess
from workers.link import Done, Ready, encode

FOLDER = MODELS / "rowhash" / "1"
BURST = 32


def bare(rows: int, batches: int) -> float:
    """Microseconds of the model alone, warm, in this process."""
    spec = importlib.util.spec_from_file_location("rowhash", FOLDER / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, row = module.RowHash(), np.random.default_rng(0).random((rows, 64), np.float32)
    times = []
    for _ in range(batches):
        started = time.perf_counter_ns()
        model.infer({"row": row})
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1000


def one_by_one(engine: EngineProcess, rows: int, batches: int) -> list[float]:
    """Microseconds from sending a batch's frame to having its answer, one batch at a time."""
    row = np.random.default_rng(1).random((rows, 64), np.float32)
    times = []
    for _ in range(batches):
        started = time.perf_counter_ns()
        engine.submit({"row": row})
        answer = engine.receive()
        times.append((time.perf_counter_ns() - started) / 1000)
        assert isinstance(answer, Done)
    return times


def back_to_back(engine: EngineProcess, rows: int, batches: int) -> float:
    """Microseconds of the engine's processor time per batch when the next frame is always there.

    One slot and frames made beforehand, 32 at a time, so that this process is not what is measured; processor time,
    so that neither are its neighbours on the machine.
    """
    batch = engine.submit({"row": np.random.default_rng(1).random((rows, 64), np.float32)})
    assert isinstance(engine.receive(), Done)
    burst = encode(batch) * BURST
    before = cpu_seconds(engine.process.pid)
    for _ in range(batches // BURST):
        engine.send_bytes(burst)
        assert all(isinstance(engine.receive(), Done) for _ in range(BURST))
    return (cpu_seconds(engine.process.pid) - before) / (batches // BURST * BURST) * 1e6


def cpu_seconds(pid: int) -> float:
    """Processor time that a process's main thread has used (the kernel counts it in nanoseconds)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batches", type=int, default=5000)
    batches = parser.parse_args().batches
    figures: dict[str, float] = {}
    with EngineProcess(FOLDER) as engine:
        started = time.perf_counter()
        ready = engine.start()
        assert isinstance(ready, Ready)
        figures["start_ms"] = (time.perf_counter() - started) * 1000
        figures["start_cpu_ms"] = cpu_seconds(engine.process.pid) * 1000
        figures["load_ms"] = ready.load_seconds * 1000
        for rows in (1, 64):
            times = sorted(one_by_one(engine, rows, batches))
            busy, model = back_to_back(engine, rows, batches), bare(rows, batches)
            figures |= {
                f"round_trip_us_p50_{rows}": statistics.median(times),
                f"round_trip_us_p99_{rows}": times[int(len(times) * 0.99)],
                f"busy_cpu_us_{rows}": busy,
                f"model_us_{rows}": model,
                f"overhead_us_{rows}": busy - model,
            }
    for name, value in figures.items():
        print(f"{name:28s} {value:8.1f}")
    target = ROOT / "build" / "bench" / "engine_round_trip.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({name: round(value, 1) for name, value in figures.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
