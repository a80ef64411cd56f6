"""The engine process: one per lease, owner of its models and its device."""
