"""A bundle is written: weights once, graphs, the manifest, and one rename."""
