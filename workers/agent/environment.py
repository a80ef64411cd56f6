"""The environments of a worker's processes: pure.

The ingest is trusted and inherits the agent's, but for what only the agent reads. The engine runs model code: its
environment is built, so that no credential reaches it, and says which device it may see and how many threads it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from contracts.pool import COMPUTE_PER_CORE, Lease
from contracts.settings import ENV_PREFIX

_thread_variables: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_engine_names: Final = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})
_engine_prefixes: Final = ("PYTHON", "LC_", f"{ENV_PREFIX}ENGINE__", f"{ENV_PREFIX}LOG__", f"{ENV_PREFIX}TEST_")
_agent_only: Final = f"{ENV_PREFIX}AGENT__"


def threads(lease: Lease) -> int:
    """Threads that a lease's engine may keep busy: its cores rounded up, or one that feeds a GPU."""
    if lease.mode != "cpu":
        return 1
    return max(1, math.ceil(sum(share.compute for share in lease.shares) / COMPUTE_PER_CORE))


def ingest_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of an ingest: it computes next to nothing, and sees no device."""
    kept = {name: value for name, value in base.items() if not name.upper().startswith(_agent_only)}
    return kept | dict.fromkeys(_thread_variables, "1") | {"CUDA_VISIBLE_DEVICES": ""}


def engine_environment(base: Mapping[str, str], lease: Lease) -> dict[str, str]:
    """The environment of an engine."""
    kept = {name: value for name, value in base.items() if name in _engine_names or name.startswith(_engine_prefixes)}
    devices = "" if lease.mode == "cpu" else ",".join(share.device for share in lease.shares)
    return (
        kept
        | dict.fromkeys(_thread_variables, str(threads(lease)))
        | {"CUDA_VISIBLE_DEVICES": devices, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    )
