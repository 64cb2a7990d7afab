"""Shapes of models, one JSON file each."""
