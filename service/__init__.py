"""The gateway process: HTTP surface, the request path, and the rules it follows."""
