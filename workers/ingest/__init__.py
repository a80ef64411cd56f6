"""The ingest process: owns Kafka; fetches, validates, batches, publishes, commits."""
