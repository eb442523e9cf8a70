"""Measurements against the machine's own ceiling."""
