"""Devices, one JSON file each, and what this machine is."""
