"""Exact stores: a key to the entry written under it."""
