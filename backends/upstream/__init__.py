"""Upstreams: where answers come from."""
