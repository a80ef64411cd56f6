"""The scheduler: observe, plan, apply."""
