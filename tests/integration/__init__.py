"""The real gateway over loopback."""
