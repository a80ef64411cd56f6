"""What a joiner counts."""

from __future__ import annotations

from contracts import telemetry

FIRED = telemetry.counter("joins_fired", "Joins that were fired, by the reason.", "reason")
PHANTOMS = telemetry.counter(
    "join_phantom", "Joins opened by a part that was written after its job was over: a branch that ran once more."
)
UNKNOWN = telemetry.counter("join_unusable_records", "Records on a pipeline's topics that belong to no job.")
OPEN = telemetry.gauge("joins_open", "Joins that wait for parts.", "partition")
HELD = telemetry.gauge("join_held_records", "Parts and markers whose offsets are held back.", "partition")
HELD_BYTES = telemetry.gauge(
    "join_held_bytes", "What waiting parts and joins that are remembered take up, about.", "partition"
)
STARTED = telemetry.counter("jobs_started", "Jobs that were taken apart for a caller.")
