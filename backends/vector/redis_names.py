"""What vectors are called on a Redis server, and how long it has them.

Names are hashes, as the texts may be of any length and say anything.
"""

import math

from backends.vector.names import hashed

SHORT = 12  # bytes
_LONGEST_TTL = 1e11  # seconds; the server counts milliseconds in 64 bits


def short(text: str) -> str:
    """24 hexadecimal digits: nothing in them means anything to a query, a key or a cluster."""
    return hashed(text, size=SHORT)


def space(revision: str, dimensions: int) -> str:
    """Of an embedder's vectors, which meet no others."""
    return short(f"1 {dimensions} {revision}")  # 1: the layout of the keys; another number begins anew


def lifetime(ttl: float | None) -> int | None:
    """Milliseconds after which the server may remove what lives for `ttl` seconds; None: never."""
    return None if ttl is None or ttl >= _LONGEST_TTL else max(1, math.ceil(ttl * 1000))
