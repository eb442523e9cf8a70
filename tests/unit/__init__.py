"""No network, no processes."""
