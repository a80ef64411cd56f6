"""Reading the GPUs of a machine, once, when its agent starts."""

from __future__ import annotations

from dataclasses import dataclass

from workers.devices.nvml import GpuLost, Memory, Nvml, NvmlError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as it was read once, at the agent's start."""

    index: int
    uuid: str
    name: str = ""
    memory: Memory = Memory(0, 0, 0)
    compute_capability: tuple[int, int] = (0, 0)
    pci_bus_id: str = ""
    numa_node: int | None = None
    is_mig: bool = False
    is_exclusive: bool = False
    is_lost: bool = False


def read_gpu(nvml: Nvml, index: int) -> Gpu:
    """One device; a lost one still has its id. Raises NvmlError when not even that can be read."""
    uuid = nvml.uuid(index)
    try:
        return Gpu(
            index=index,
            uuid=uuid,
            name=nvml.name(index),
            memory=nvml.memory(index),
            compute_capability=nvml.compute_capability(index),
            pci_bus_id=nvml.pci_bus_id(index),
            numa_node=nvml.numa_node(index),
            is_mig=nvml.is_mig(index),
            is_exclusive=nvml.is_exclusive(index),
        )
    except GpuLost:
        return Gpu(index=index, uuid=uuid, is_lost=True)


def read_gpus(nvml: Nvml) -> tuple[Gpu, ...]:
    """All devices that can be read at all."""
    found = []
    for index in range(nvml.device_count()):
        try:
            found.append(read_gpu(nvml, index))
        except NvmlError:
            continue  # without an id it cannot be registered, let alone leased
    return tuple(found)
