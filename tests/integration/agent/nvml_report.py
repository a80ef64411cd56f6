"""What the real binding reads from the library it is shown, as JSON: run in a process of its own."""

from __future__ import annotations

import dataclasses
import json

from workers.devices.discovery import read_gpus
from workers.devices.inventory import gpu_report
from workers.devices.nvml import NvmlAbsent, PynvmlBackend


def main() -> dict[str, object]:
    nvml = PynvmlBackend()
    try:
        nvml.open()
    except NvmlAbsent as exc:
        return {"absent": str(exc)}
    gpu = read_gpus(nvml)[0]
    found: dict[str, object] = {
        "versions": [nvml.driver_version(), nvml.cuda_version()],
        "gpu": dataclasses.asdict(gpu),
        "health": gpu_report(gpu).health,
        "reading": [nvml.clock_reasons(0), nvml.double_bit_errors(0), nvml.remap_failed(0)],
        "rates": [nvml.utilization(0), nvml.temperature(0), nvml.power_watts(0)],
        "processes": [dataclasses.asdict(process) for process in nvml.processes(0)],
        "events": [event and dataclasses.asdict(event) for event in (nvml.wait_event(1.5), nvml.wait_event(1.5))],
    }
    nvml.close()
    nvml.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
