"""What a worker counts."""

from __future__ import annotations

from contracts import telemetry

RESPONSES = telemetry.counter("worker_responses", "Terminal responses by status.", "status")
BATCHES = telemetry.counter("worker_cuts", "Batches by the reason they were cut.", "reason")
BATCH_ROWS = telemetry.histogram(
    "worker_batch_size", "Rows per batch.", buckets=(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
)
COMPUTE = telemetry.histogram("engine_inference_seconds", "From a batch's launch to its result.")
QUEUE_ROWS = telemetry.gauge(
    "worker_queue_rows",
    "Rows of a request topic waiting for a batch; each lane is one of its own.",
    "topic",
)
ENGINE_KILLS = telemetry.counter("engine_kills", "Engines ended by their worker, by the reason.", "reason")
BATCH_WAIT = telemetry.histogram("worker_batch_wait_seconds", "From taking a batch's oldest request to its launch.")
DEADLINE_MISSES = telemetry.counter(
    "worker_deadline_misses", "Rows refused because they could not be in time, and rows answered late.", "how"
)
ENGINE_RESTARTS = telemetry.counter("engine_restarts", "Engine processes that ended under this worker.")
SUSPECTS = telemetry.counter("worker_suspects", "Records taken with care, since a worker had ended with them.")
JOURNAL_GAPS = telemetry.counter("worker_journal_gaps", "Times that launches could not be journaled.")
OUT_OF_MEMORY = telemetry.counter("worker_out_of_memory", "Batches that the device had no memory for.", "model")
MEMORY_ROWS = telemetry.gauge("worker_memory_rows", "Rows in a batch that the device has memory for.", "model")
PAYLOADS = telemetry.counter("worker_payload_bytes", "Bytes of tensors read from the store, and written.", "direction")
RETRIES = telemetry.counter("worker_retries", "Requests that were put off to be tried again, by class.", "reason")
FORWARDED = telemetry.counter("worker_retries_forwarded", "Retries that went back to their request topic.")
ENGINE_GRAPHS = telemetry.gauge(
    "engine_graphs", "CUDA graphs that the engine has made, and that it could not make.", "model", "outcome"
)
