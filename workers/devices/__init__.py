"""What a node has: its GPUs through NVML, its cores and memory."""
