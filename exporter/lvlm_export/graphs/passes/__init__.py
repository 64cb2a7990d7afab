"""Rewrites of the traced graph."""
