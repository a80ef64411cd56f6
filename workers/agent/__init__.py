"""The node agent: registers a machine's devices, and starts, watches and ends its workers."""
