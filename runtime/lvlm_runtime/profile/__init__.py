"""A bundle is measured, round by round, into a report."""
