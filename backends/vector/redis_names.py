"""What vectors are called on a Redis server, and how long it has them.

Names are hashes, as the texts may be of any length and say anything.
"""

import math
from hashlib import blake2b

_SHORT = 12  # bytes
_LONGEST_TTL = 1e11  # seconds; the server counts milliseconds in 64 bits


def encoded(text: str) -> bytes:
    """Any string, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def short(text: str) -> str:
    """24 hexadecimal digits: nothing in them means anything to a query, a key or a cluster."""
    return blake2b(encoded(text), digest_size=_SHORT).hexdigest()


def space(revision: str, dimensions: int) -> str:
    """Of an embedder's vectors, which meet no others."""
    return short(f"1 {dimensions} {revision}")  # 1: the layout of the keys; another number begins anew


def ancestry(namespace: str) -> list[str]:
    """The short names of every namespace above it and its own: what a prefix may be that clears it."""
    hashed = blake2b(digest_size=_SHORT)
    names = []
    for number, part in enumerate(encoded(namespace).split(b"/")):
        hashed.update(b"/" * bool(number) + part)
        names.append(hashed.copy().hexdigest())
    return names


def lifetime(ttl: float | None) -> int | None:
    """Milliseconds after which the server may remove what lives for `ttl` seconds; None: never."""
    return None if ttl is None or ttl >= _LONGEST_TTL else max(1, math.ceil(ttl * 1000))
