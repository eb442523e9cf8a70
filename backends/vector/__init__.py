"""Vector stores: a vector to its nearest neighbours in one namespace."""
