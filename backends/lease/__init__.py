"""Leases: who does what only one of many should do."""
