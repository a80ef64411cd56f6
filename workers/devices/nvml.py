"""What the node agent asks of NVIDIA's management library, and the only door to its binding (nvidia-ml-py).

`Nvml` names the calls; devices are addressed by index, which is stable while the library is open. Health is read in two
ways: `wait_event` blocks in a thread of its own (the call releases the interpreter lock) and `reading` is polled. All
failures surface as NvmlError; GpuLost means that the device has left the bus, and Unsupported that this driver or
device does not offer the call, for which every optional reading has a neutral value.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from contracts.errors import HeadraceError

_T = TypeVar("_T")

SLOWDOWN_BITS: Final = 0x08 | 0x20 | 0x40 | 0x80
"""Clock reasons that mean heat or power: hardware, software thermal, hardware thermal, power brake."""


class NvmlError(HeadraceError):
    """The driver refused or failed a call."""


class NvmlAbsent(NvmlError):
    """There is no driver, or its binding is not installed."""


class GpuLost(NvmlError):
    """The device has fallen off the bus or is otherwise inaccessible."""


class Unsupported(NvmlError):
    """This driver or device does not offer the call."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Device memory in bytes; `reserved` is what the driver keeps for itself and `total` includes it."""

    total: int
    reserved: int
    used: int


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """Something the driver reported. Without a uuid it concerns every device of the machine."""

    uuid: str | None
    xid: int | None = None
    is_double_bit: bool = False
    recovery_action: bool = False


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on the device; in a container the pid may be another namespace's."""

    pid: int
    memory_bytes: int


class Nvml(Protocol):
    """The calls that the agent makes. All may raise NvmlError."""

    def open(self) -> None:
        """Load the library; NvmlAbsent when there is none."""
        ...

    def close(self) -> None: ...

    def driver_version(self) -> str: ...

    def cuda_version(self) -> str:
        """Highest CUDA version of the driver, as `12.4`."""
        ...

    def device_count(self) -> int: ...

    def uuid(self, index: int) -> str: ...

    def name(self, index: int) -> str: ...

    def pci_bus_id(self, index: int) -> str: ...

    def numa_node(self, index: int) -> int | None: ...

    def compute_capability(self, index: int) -> tuple[int, int]: ...

    def memory(self, index: int) -> Memory: ...

    def is_mig(self, index: int) -> bool:
        """Whether MIG mode is on, so that only instances can be used."""
        ...

    def is_exclusive(self, index: int) -> bool:
        """Whether the device admits a single process."""
        ...

    def utilization(self, index: int) -> int:
        """Percent of time in which some kernel ran."""
        ...

    def temperature(self, index: int) -> int:
        """Degrees Celsius."""
        ...

    def power_watts(self, index: int) -> float: ...

    def clock_reasons(self, index: int) -> int:
        """Bits that say why the clocks are below their maximum."""
        ...

    def double_bit_errors(self, index: int) -> int:
        """Uncorrected memory errors since the driver was loaded."""
        ...

    def remap_failed(self, index: int) -> bool:
        """Whether the device ran out of spare memory rows."""
        ...

    def processes(self, index: int) -> tuple[GpuProcess, ...]: ...

    def wait_event(self, timeout_seconds: float) -> GpuEvent | None:
        """Block until a device reports something; None after the timeout."""
        ...


class PynvmlBackend:
    """The real driver through nvidia-ml-py, which the `gpu` extra installs."""

    def __init__(self) -> None:
        self._lib: types.ModuleType | None = None
        self._handles: list[Any] = []
        self._events: Any = None

    def open(self) -> None:
        try:
            self._lib = importlib.import_module("pynvml")
        except ImportError as exc:
            msg = "the binding nvidia-ml-py is not installed; it comes with headrace[gpu]"
            raise NvmlAbsent(msg) from exc
        with self._translated() as lib:
            lib.nvmlInit()
            for index in range(lib.nvmlDeviceGetCount()):
                with contextlib.suppress(lib.NVMLError):  # one that not even shows itself must not hide the others
                    self._handles.append(lib.nvmlDeviceGetHandleByIndex(index))

    def close(self) -> None:
        if self._lib is None:
            return
        lib, self._lib, self._handles = self._lib, None, []
        with contextlib.suppress(lib.NVMLError):
            if self._events is not None:
                lib.nvmlEventSetFree(self._events)
        self._events = None
        with contextlib.suppress(lib.NVMLError):
            lib.nvmlShutdown()

    def driver_version(self) -> str:
        with self._translated() as lib:
            return str(lib.nvmlSystemGetDriverVersion())

    def cuda_version(self) -> str:
        with self._translated() as lib:
            number = int(lib.nvmlSystemGetCudaDriverVersion_v2())
        return f"{number // 1000}.{number % 1000 // 10}"

    def device_count(self) -> int:
        return len(self._handles)

    def uuid(self, index: int) -> str:
        return str(self._ask("nvmlDeviceGetUUID", index))

    def name(self, index: int) -> str:
        return str(self._ask("nvmlDeviceGetName", index))

    def pci_bus_id(self, index: int) -> str:
        return str(self._ask("nvmlDeviceGetPciInfo", index).busId)

    def numa_node(self, index: int) -> int | None:
        node = _unless_unsupported(lambda: int(self._ask("nvmlDeviceGetNumaNodeId", index)), -1)
        return node if node >= 0 else None

    def compute_capability(self, index: int) -> tuple[int, int]:
        major, minor = self._ask("nvmlDeviceGetCudaComputeCapability", index)
        return int(major), int(minor)

    def memory(self, index: int) -> Memory:
        with self._translated() as lib:
            try:
                found = lib.nvmlDeviceGetMemoryInfo(self._handles[index], version=lib.nvmlMemory_v2)
            except (lib.NVMLError_FunctionNotFound, lib.NVMLError_NotSupported):  # drivers before 510
                found = lib.nvmlDeviceGetMemoryInfo(self._handles[index])
        return Memory(int(found.total), int(getattr(found, "reserved", 0)), int(found.used))

    def is_mig(self, index: int) -> bool:
        return _unless_unsupported(lambda: bool(self._ask("nvmlDeviceGetMigMode", index)[0]), default=False)

    def is_exclusive(self, index: int) -> bool:
        with self._translated() as lib:
            exclusive = lib.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
        return _unless_unsupported(
            lambda: bool(self._ask("nvmlDeviceGetComputeMode", index) == exclusive), default=False
        )

    def utilization(self, index: int) -> int:
        return _unless_unsupported(lambda: int(self._ask("nvmlDeviceGetUtilizationRates", index).gpu), 0)

    def temperature(self, index: int) -> int:
        return _unless_unsupported(lambda: int(self._ask("nvmlDeviceGetTemperature", index, 0)), 0)

    def power_watts(self, index: int) -> float:
        return _unless_unsupported(lambda: float(self._ask("nvmlDeviceGetPowerUsage", index)) / 1000, 0.0)

    def clock_reasons(self, index: int) -> int:
        return _unless_unsupported(lambda: int(self._ask("nvmlDeviceGetCurrentClocksEventReasons", index)), 0)

    def double_bit_errors(self, index: int) -> int:
        with self._translated() as lib:
            kind, span = lib.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, lib.NVML_VOLATILE_ECC
        return _unless_unsupported(lambda: int(self._ask("nvmlDeviceGetTotalEccErrors", index, kind, span)), 0)

    def remap_failed(self, index: int) -> bool:
        return _unless_unsupported(lambda: bool(self._ask("nvmlDeviceGetRemappedRows", index)[3]), default=False)

    def processes(self, index: int) -> tuple[GpuProcess, ...]:
        found: Sequence[Any] = _unless_unsupported(lambda: self._ask("nvmlDeviceGetComputeRunningProcesses", index), ())
        return tuple(GpuProcess(int(one.pid), int(one.usedGpuMemory or 0)) for one in found)

    def wait_event(self, timeout_seconds: float) -> GpuEvent | None:
        with self._translated() as lib:
            if self._events is None:
                self._events = self._register_events(lib)
            try:
                found = lib.nvmlEventSetWait_v2(self._events, int(timeout_seconds * 1000))
            except lib.NVMLError_Timeout:  # how the binding says that nothing happened
                return None
            uuid = _unless_unsupported(lambda: str(lib.nvmlDeviceGetUUID(found.device)), "") if found.device else ""
            return GpuEvent(
                uuid=uuid or None,
                xid=int(found.eventData) if found.eventType == lib.nvmlEventTypeXidCriticalError else None,
                is_double_bit=found.eventType == lib.nvmlEventTypeDoubleBitEccError,
                recovery_action=found.eventType == getattr(lib, "nvmlEventTypeGpuRecoveryAction", 0),
            )

    def _register_events(self, lib: Any) -> Any:
        wanted = lib.nvmlEventTypeXidCriticalError | lib.nvmlEventTypeDoubleBitEccError
        wanted |= getattr(lib, "nvmlEventTypeGpuRecoveryAction", 0)
        events = lib.nvmlEventSetCreate()
        for handle in self._handles:
            with contextlib.suppress(lib.NVMLError_NotSupported):  # such a device is watched by polling alone
                lib.nvmlDeviceRegisterEvents(handle, wanted & lib.nvmlDeviceGetSupportedEventTypes(handle), events)
        return events

    def _ask(self, call: str, index: int, *args: object) -> Any:
        with self._translated() as lib:
            return getattr(lib, call)(self._handles[index], *args)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[Any]:
        lib: Any = self._lib
        if lib is None:
            msg = "NVML is not open"
            raise NvmlError(msg)
        try:
            yield lib
        except (lib.NVMLError_LibraryNotFound, lib.NVMLError_DriverNotLoaded) as exc:
            msg = f"no NVIDIA driver: {exc}"
            raise NvmlAbsent(msg) from exc
        except (lib.NVMLError_GpuIsLost, lib.NVMLError_ResetRequired) as exc:
            raise GpuLost(str(exc)) from exc
        except (lib.NVMLError_NotSupported, lib.NVMLError_FunctionNotFound) as exc:
            raise Unsupported(str(exc)) from exc
        except lib.NVMLError as exc:
            raise NvmlError(str(exc)) from exc


def _unless_unsupported(ask: Callable[[], _T], default: _T) -> _T:
    try:
        return ask()
    except Unsupported:
        return default
