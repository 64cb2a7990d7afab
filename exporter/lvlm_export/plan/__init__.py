"""Everything that is decided before anything heavy happens: integers, no torch."""
