"""What the machine itself offers: cores, memory, load, and which boot this is; read from /proc where there is one."""

from __future__ import annotations

import os
from pathlib import Path

_MIB = 1024 * 1024


def usable_cores() -> int:
    """Cores that this process may run on; containers and affinity masks count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_mib() -> int:
    """Memory that this process may use: the machine's, or its container's when that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(limit)
        if text.isdecimal():
            total = min(total, int(text))
    return max(1, total // _MIB)


def used_memory_mib() -> int:
    """Memory in use on the machine; 0 where it cannot be told."""
    fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    try:
        return (int(fields["MemTotal"].split()[0]) - int(fields["MemAvailable"].split()[0])) // 1024
    except (KeyError, ValueError, IndexError):
        return 0


def boot_id() -> str:
    """Changes with every boot of the machine; "" where the platform has none."""
    return _read("/proc/sys/kernel/random/boot_id")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
