"""What everything that drains a topic counts."""

from __future__ import annotations

from contracts import telemetry
from contracts.plans import Node

PUBLISH_RETRIES = telemetry.counter("worker_publish_retries", "Publishes repeated after a transport error.")
COMMITS = telemetry.counter("worker_commits", "Offset commits by outcome.", "outcome")
UNREADABLE = telemetry.counter("worker_unreadable_records", "Records given up because they cannot be decoded at all.")
STUCK = telemetry.counter(
    "worker_stuck_readers", "Readers made anew, since they stood still although the log had more."
)
OFFSET_GAPS = telemetry.counter("worker_offset_gaps", "Offsets that do not exist in the log.")
LOST_TO_RETENTION = telemetry.counter(
    "worker_requests_lost_to_retention", "Records that retention removed before they were answered."
)
PARTITIONS = telemetry.gauge("worker_partitions", "Partitions that this worker drains.", "topic")
DEAD_LETTERS = telemetry.counter("worker_dead_letters", "Records put aside in a dead-letter topic.", "reason")
DEAD_LETTERS_LOST = telemetry.counter("worker_dead_letters_lost", "Dead letters that their topic did not take.")
EMISSIONS = telemetry.counter("worker_emissions", "What steps of pipelines made: asks, parts and answers.", "kind")
SPARED = telemetry.counter("worker_rows_spared", "Rows that a condition kept from a model, as in a cascade.", "model")
HOP_PAYLOADS = telemetry.counter("worker_hop_payload_bytes", "Bytes that went from step to step through the store.")


def count_spared(node: Node, rows: int) -> None:
    """Count rows that a model was not asked for."""
    SPARED.labels(str(node.model)).inc(rows)
