"""Which candidate meets a latency goal on a device."""
