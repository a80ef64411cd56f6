"""When to cut a batch, as a pure function.

Batches form while the device is busy: with one batch running and one ready the queue grows by itself, so sizes follow
the load without a timer. With a free engine a batch is cut at once, unless the model's operator allowed a delay and
more rows would fit.
"""

from __future__ import annotations

from typing import NamedTuple

from contracts.specs import BatchingSpec

DEPTH = 2
"""Batches an engine holds: one runs, one is ready. Deeper adds latency, not throughput."""


class Cut(NamedTuple):
    """Cut a batch of at most `rows` rows now; `reason` is `full`, `engine_free` or `delay`."""

    rows: int
    reason: str


class Wait(NamedTuple):
    """Decide again at `until` (monotonic seconds), or when something changes."""

    until: float


class Hold(NamedTuple):
    """Nothing to do before the engine or the queue changes."""


Decision = Cut | Wait | Hold


def decide(now: float, queued_rows: int, oldest_taken: float, in_hand: int, knobs: BatchingSpec) -> Decision:
    """Decide over the queue of one batch key: `queued_rows` rows, the oldest taken at `oldest_taken`."""
    if not queued_rows or in_hand >= DEPTH:
        return Hold()
    if queued_rows >= knobs.max_batch_size:
        return Cut(knobs.max_batch_size, "full")
    until = oldest_taken + knobs.max_batch_delay_ms / 1000
    if now < until:
        return Wait(until)
    return Cut(knobs.max_batch_size, "delay" if knobs.max_batch_delay_ms else "engine_free")
