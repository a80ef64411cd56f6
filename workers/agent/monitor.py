"""Watches the GPUs of a machine and says when the health of one changes.

Events are awaited in a thread, because the driver's call blocks; readings are polled in another. What they mean is
decided in `workers.agent.health`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

from contracts.clock import Clock, SystemClock
from contracts.pool import Health
from workers.agent import metrics
from workers.agent.health import DeviceHealth, Reading
from workers.devices.inventory import Gpu
from workers.devices.nvml import GpuEvent, GpuLost, Nvml, NvmlError

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
_wait_seconds = 1.0  # also how long a stop may take


class GpuMonitor:
    """Calls `on_health(device, health)` in the event loop for every change."""

    def __init__(
        self,
        nvml: Nvml,
        gpus: Sequence[Gpu],
        on_health: Callable[[str, Health], None],
        clock: Clock | None = None,
    ) -> None:
        self._nvml, self._on_health = nvml, on_health
        self._clock = clock or SystemClock()
        self._indices = {gpu.uuid: gpu.index for gpu in gpus if not gpu.is_lost}
        self._devices = {uuid: DeviceHealth() for uuid in self._indices}
        self._told: dict[str, Health] = dict.fromkeys(self._indices, "ok")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen to events."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listen, args=(loop,), name="gpu-events", daemon=True)
        self._thread.start()

    async def poll_loop(self) -> None:
        """Read all devices again and again."""
        while True:
            readings = await asyncio.to_thread(self._read)
            for uuid, reading in readings.items():
                self._devices[uuid].on_reading(reading)
                self._tell(uuid)
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self) -> None:
        """Stop listening; idempotent."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping.is_set():
            try:
                event = self._nvml.wait_event(_wait_seconds)
            except NvmlError as exc:
                log.warning("waiting for GPU events failed, so all GPUs count as unhealthy: %s", exc)
                event = GpuEvent(uuid=None)
            if event is not None:
                with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                    loop.call_soon_threadsafe(self._on_event, event)
                if event.uuid is None:
                    self._stopping.wait(_wait_seconds)  # a wait that fails fails at once

    def _on_event(self, event: GpuEvent) -> None:
        if event.recovery_action:
            metrics.recovery_actions.inc()
        for uuid in [event.uuid] if event.uuid in self._devices else list(self._devices):
            self._devices[uuid].on_event(event, self._clock.monotonic())
            self._tell(uuid)

    def _tell(self, uuid: str) -> None:
        health = self._devices[uuid].health
        if health != self._told[uuid]:
            log.warning("GPU %s is %s", uuid, health)
            metrics.health_changes.labels(health).inc()
            self._told[uuid] = health
            self._on_health(uuid, health)

    def _read(self) -> dict[str, Reading]:
        found = {}
        for uuid, index in self._indices.items():
            try:
                found[uuid] = Reading(
                    clock_reasons=self._nvml.clock_reasons(index),
                    double_bit_errors=self._nvml.double_bit_errors(index),
                    remap_failed=self._nvml.remap_failed(index),
                )
            except GpuLost:
                found[uuid] = Reading(is_lost=True)
            except NvmlError as exc:
                log.warning("GPU %s cannot be read: %s", uuid, exc)
        return found
