"""A request's way through the graphs."""
