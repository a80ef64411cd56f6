"""What all sides agree on: messages, names, specs, settings, leases, and the doors to Kafka and Redis."""
