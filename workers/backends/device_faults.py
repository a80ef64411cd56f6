"""What libraries say of a GPU, by their words: that there is no memory, and faults that last. Pure.

After some faults a process can do nothing more with its device. CUDA calls them sticky: every later call of the process
fails in the same way, whatever it computes. The batch that saw the fault may be innocent, and the next ones certainly
are, so no answer may be given in their place: the engine ends, and what it held is run again by a new one, alone.
"""

from __future__ import annotations

from typing import Final

# As cudaGetErrorString words them, which is what the libraries above it quote; each says in CUDA's reference that the
# process must be terminated and relaunched.
_sticky: Final = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "hardware stack error",
    "invalid program counter",
    "misaligned address",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "uncorrectable ecc error encountered",
    "unspecified launch failure",
)

# How the CUDA libraries, and ONNX Runtime and torch above them, word a failed allocation where they have no exception
# class for it: torch has one for its own allocator, not for what a kernel, a graph or cuBLAS ask for.
_allocation_failures: Final = (
    "bad allocation",
    "bad_alloc",
    "can't allocate memory",
    "failed to allocate memory",
    "out of memory",
    "status_alloc_failed",
)


class DeviceLost(Exception):
    """The process has lost its device; only a new process can go on."""


def is_lost(exc: BaseException) -> bool:
    """Whether an exception of a library tells of such a fault."""
    text = str(exc).lower()
    return "cuda" in text and any(words in text for words in _sticky)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an exception of a library tells of an allocation that failed: less may fit."""
    text = str(exc).lower()
    return any(words in text for words in _allocation_failures)
