"""Keyrings: the virtual keys, by the hash of their secret."""
