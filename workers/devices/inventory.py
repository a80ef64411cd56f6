"""What a node offers to the pool, computed from what was read of its devices.

A GPU's capacity is its memory minus what the driver keeps, minus a guard of two percent: the last MiB cannot be
allocated in one piece, and an out-of-memory error costs more than it is worth. Its compute is 100 (percent). A device
in MIG mode can be used through instances only, and an exclusive one admits a single process, which the labels say.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.pool import COMPUTE_PER_GPU, SLOTS_PER_GPU, DeviceReport, Health, NodeReport, cpu_report
from workers.devices.nvml import Memory

MEMORY_GUARD_PERCENT = 2
_MIB = 1024 * 1024


_no_memory = Memory(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as it was read once, at the agent's start."""

    index: int
    uuid: str
    name: str = ""
    memory: Memory = _no_memory
    compute_capability: tuple[int, int] = (0, 0)
    pci_bus_id: str = ""
    numa_node: int | None = None
    is_mig: bool = False
    is_exclusive: bool = False
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What the node agent found, or was told to offer."""

    node: str
    host: str
    boot_id: str
    cores: int
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""


def usable_memory_mib(memory: Memory) -> int:
    """Memory that leases may share."""
    return max(0, memory.total - memory.reserved - memory.total * MEMORY_GUARD_PERCENT // 100) // _MIB


def gpu_report(gpu: Gpu) -> DeviceReport:
    """A GPU as the pool sees it."""
    health: Health = "lost" if gpu.is_lost else "unhealthy" if gpu.is_mig else "ok"
    major, minor = gpu.compute_capability
    labels = {"cc": f"{major}.{minor}", "pci": gpu.pci_bus_id}
    if gpu.numa_node is not None:
        labels["numa"] = str(gpu.numa_node)
    if gpu.is_mig:
        labels["mig"] = "on"  # only its instances can be used, and those are not offered
    return DeviceReport(
        id=gpu.uuid,
        kind="gpu",
        name=gpu.name,
        memory_mib=usable_memory_mib(gpu.memory),
        compute_cap=COMPUTE_PER_GPU,
        lease_slots=1 if gpu.is_exclusive else SLOTS_PER_GPU,
        health=health,
        labels=labels,
    )


def node_report(machine: Machine) -> NodeReport:
    """The machine as the pool sees it."""
    labels = {"driver": machine.driver, "cuda": machine.cuda} if machine.driver else {}
    return NodeReport(
        id=machine.node,
        host=machine.host,
        boot_id=machine.boot_id,
        cores=machine.cores,
        memory_mib=machine.memory_mib,
        labels=labels,
    )


def device_reports(machine: Machine) -> tuple[DeviceReport, ...]:
    """The devices of a machine: its GPUs, and its cores as one more."""
    cpu = cpu_report(machine.node, machine.cores, machine.memory_mib)
    return (*(gpu_report(gpu) for gpu in machine.gpus), cpu)
