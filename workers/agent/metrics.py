"""What a node agent counts."""

from __future__ import annotations

from contracts.telemetry import counter, gauge, histogram

workers = gauge("agent_workers", "Workers with at least one living process.")
starts = counter("agent_starts_total", "Workers started.")
start_failures = counter("agent_start_failures_total", "Workers that could not be started.")
adoptions = counter("agent_adoptions_total", "Workers taken over from an earlier agent.")
respawns = counter("agent_engine_respawns_total", "Engines started again under the same lease.")
kills = counter("agent_kills_total", "Workers that had to be killed.")
confirms = counter("agent_confirms_total", "Leases confirmed as over.")
confirm_seconds = histogram(
    "agent_confirm_seconds", "From the exit of the last process that was seen to the confirmation of its lease."
)
heartbeat_failures = counter("agent_heartbeat_failures_total", "Heartbeats that Redis did not answer.")
registrations = counter("agent_registrations_total", "Registrations of the node, one per incarnation.")
self_fences = counter(
    "agent_self_fences_total", "Times that all workers were killed because the pool was out of reach."
)
health_changes = counter("agent_health_changes_total", "Changes of a device's health.", "health")
recovery_actions = counter("agent_recovery_actions_total", "Recovery actions that a GPU driver asked for.")
