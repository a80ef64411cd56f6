"""What a plan consists of: values that say what should be done, and in human words why.

Every action is idempotent by what it names (a lease id, a partition), so carrying out a plan twice, or a part of it,
does no harm. `Wait` and nothing else is not carried out: it tells who is short of workers and why.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from contracts.pool import Mode, NodeState, Share

WaitReason = Literal["no device fits", "recent starts failed", "its model is not registered"]


class Commit(Struct, frozen=True, kw_only=True):
    """Grant a lease to a new worker. `gens` are the device generations that the plan saw."""

    lease: str
    deployment: str
    models: tuple[str, ...]
    tenant: str
    node: str
    mode: Mode
    shares: tuple[Share, ...]
    gens: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        held = ", ".join(f"{s.compute} % and {s.memory_mib} MiB of {s.device}" for s in self.shares)
        return f"start a worker of {self.deployment} on {self.node}: lease {self.lease}, {held}"


class Want(Struct, frozen=True):
    """Say who should drain these partitions; None is nobody."""

    topic: str
    wants: dict[int, str | None]

    def __str__(self) -> str:
        parts: dict[str, list[int]] = {}
        for partition, lease in sorted(self.wants.items()):
            parts.setdefault(lease or "nobody", []).append(partition)
        return f"{self.topic}: " + "; ".join(f"{ranges(numbers)} to {lease}" for lease, numbers in parts.items())


class Evict(Struct, frozen=True):
    """Take partitions from owners that did not let go in time."""

    topic: str
    partitions: tuple[int, ...]

    def __str__(self) -> str:
        return f"take {self.topic} {ranges(self.partitions)} from owners that did not let go"


class Drain(Struct, frozen=True):
    """Let a worker finish and exit."""

    lease: str
    deployment: str
    reason: str

    def __str__(self) -> str:
        return f"let lease {self.lease} of {self.deployment} finish: {self.reason}"


class Hold(Struct, frozen=True):
    """Move a node on, once nothing runs there any more."""

    node: str
    state: NodeState

    def __str__(self) -> str:
        return f"node {self.node} is empty: {self.state}"


class Wait(Struct, frozen=True):
    """A deployment has fewer workers than wanted, and nothing can be done about it now."""

    deployment: str
    missing: int
    reason: WaitReason
    retry_unix_ms: int | None = None

    def __str__(self) -> str:
        return f"{self.deployment} waits for {self.missing} more workers: {self.reason}"


Action = Commit | Want | Evict | Drain | Hold | Wait


def ranges(numbers: tuple[int, ...] | list[int]) -> str:
    """Numbers for people: 0-3, 7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
