"""Which upstream answers a model name."""
