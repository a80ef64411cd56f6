"""An NVML without a GPU, for tests and for trying the pool out: it answers from a YAML fixture.

The file follows the schema of NVIDIA's mock library (`system`, `device_defaults`, `devices`, `processes` and per-device
`failure`), so one file can drive both. Ours on top: `timeline`, events at seconds after the opening, such as
`{t: 5.0, device: 0, xid: 79}`, `{t: 6.0, device: 0, double_bit: true}` or `{t: 7.0, device: null}` (all devices).
A device that got one of the two Xids of a lost bus, or whose `failure` says so, answers nothing from then on.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import yaml

from contracts.clock import Clock, SystemClock
from contracts.errors import ConfigurationError
from workers.devices.nvml import GpuEvent, GpuLost, GpuProcess, Memory, NvmlError

_FATAL_XID: Final = 79  # "GPU has fallen off the bus"
_reason_bits: Final = {
    "gpu_idle": 0x01,
    "applications_clocks_setting": 0x02,
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


class FakeNvml:
    """Answers as the fixture says; `wait_event` plays its timeline against the clock."""

    def __init__(self, fixture: dict[str, Any], clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._system: dict[str, Any] = fixture.get("system", {})
        defaults: dict[str, Any] = fixture.get("device_defaults", {})
        self._devices = [_merged(defaults, device) for device in fixture.get("devices", [])]
        self._timeline = sorted(fixture.get("timeline", []), key=lambda event: float(event["t"]))
        self._opened = 0.0
        self._lost: set[int] = set()
        self._closed = threading.Event()

    @classmethod
    def load(cls, path: str | Path, clock: Clock | None = None) -> FakeNvml:
        """Read a fixture; raises ConfigurationError when it cannot be used."""
        try:
            fixture = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as exc:
            msg = f"the NVML fixture {path} cannot be read: {exc}"
            raise ConfigurationError(msg) from exc
        if not isinstance(fixture, dict) or not isinstance(fixture.get("devices"), list):
            msg = f"the NVML fixture {path} must be a map with a list `devices`"
            raise ConfigurationError(msg)
        return cls(fixture, clock)

    def open(self) -> None:
        self._opened = self._clock.monotonic()
        self._closed.clear()

    def close(self) -> None:
        self._closed.set()

    def driver_version(self) -> str:
        return str(self._system.get("driver_version", "0"))

    def cuda_version(self) -> str:
        return str(self._system.get("cuda_version", "0.0"))

    def device_count(self) -> int:
        return len(self._devices)

    def uuid(self, index: int) -> str:
        return str(self._devices[index]["uuid"])  # the library remembers it: a lost device still has its name

    def name(self, index: int) -> str:
        return str(self._device(index)["name"])

    def pci_bus_id(self, index: int) -> str:
        return str(self._device(index).get("pci", {}).get("bus_id", ""))

    def numa_node(self, index: int) -> int | None:
        node = self._device(index).get("numa_node")
        return None if node is None else int(node)

    def compute_capability(self, index: int) -> tuple[int, int]:
        found = self._device(index)["compute_capability"]
        return int(found["major"]), int(found["minor"])

    def memory(self, index: int) -> Memory:
        found = self._device(index)["memory"]
        return Memory(int(found["total_bytes"]), int(found.get("reserved_bytes", 0)), int(found.get("used_bytes", 0)))

    def is_mig(self, index: int) -> bool:
        return bool(self._device(index).get("mig", {}).get("mode_current") == "enabled")

    def is_exclusive(self, index: int) -> bool:
        return bool(self._device(index).get("compute_mode") == "exclusive_process")

    def utilization(self, index: int) -> int:
        return int(self._device(index).get("utilization", {}).get("gpu", 0))

    def temperature(self, index: int) -> int:
        return int(self._device(index).get("thermal", {}).get("temperature_gpu_c", 0))

    def power_watts(self, index: int) -> float:
        return float(self._device(index).get("power", {}).get("current_draw_mw", 0)) / 1000

    def clock_reasons(self, index: int) -> int:
        reasons = self._device(index).get("clocks_throttle_reasons", {})
        return sum(bit for name, bit in _reason_bits.items() if reasons.get(name))

    def double_bit_errors(self, index: int) -> int:
        device = self._device(index)
        planted = int(device.get("failure", {}).get("mode") == "ecc_uncorrectable")
        errors = device.get("ecc", {}).get("errors", {}).get("volatile", {}).get("double_bit", {})
        return planted + int(errors.get("total", 0))

    def remap_failed(self, index: int) -> bool:
        return bool(self._device(index).get("remapped_rows", {}).get("failure_occurred", False))

    def processes(self, index: int) -> tuple[GpuProcess, ...]:
        found = self._device(index).get("processes", [])
        return tuple(GpuProcess(int(one["pid"]), int(one.get("used_memory_bytes", 0))) for one in found)

    def wait_event(self, timeout_seconds: float) -> GpuEvent | None:
        now = self._clock.monotonic() - self._opened
        due = float(self._timeline[0]["t"]) - now if self._timeline else timeout_seconds + 1
        if due > timeout_seconds:
            self._closed.wait(timeout_seconds)
            return None
        if due > 0 and self._closed.wait(due):
            return None
        entry = self._timeline.pop(0)
        index = entry.get("device")
        if index is not None and entry.get("xid") == _FATAL_XID:
            self._lost.add(int(index))
        return GpuEvent(
            uuid=None if index is None else self.uuid(int(index)),
            xid=int(entry["xid"]) if "xid" in entry else None,
            is_double_bit=bool(entry.get("double_bit", False)),
        )

    def _device(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self._devices):
            msg = f"there is no device {index}"
            raise NvmlError(msg)
        device = self._devices[index]
        if index in self._lost or device.get("failure", {}).get("mode") in ("lost", "fallen_off_bus"):
            msg = f"device {index} is lost"
            raise GpuLost(msg)
        return device
