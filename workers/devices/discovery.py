"""Reading a machine, once, when its agent starts."""

from __future__ import annotations

import socket

from workers.devices import cpu
from workers.devices.inventory import Gpu, Machine
from workers.devices.nvml import GpuLost, Nvml, NvmlError


def look_around(node: str, *, cores: int | None, memory_mib: int | None, nvml: Nvml | None) -> Machine:
    """What there is, or what is to be offered of it."""
    return Machine(
        node=node,
        host=socket.gethostname(),
        boot_id=cpu.boot_id(),
        cores=cores or cpu.usable_cores(),
        memory_mib=memory_mib or cpu.memory_mib(),
        gpus=read_gpus(nvml) if nvml is not None else (),
        driver=nvml.driver_version() if nvml is not None else "",
        cuda=nvml.cuda_version() if nvml is not None else "",
    )


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
