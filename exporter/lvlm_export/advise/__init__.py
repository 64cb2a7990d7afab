"""What to build for a device and a latency goal, from a model's shapes alone."""
