"""The rules of the cache. Storage is in backends."""
