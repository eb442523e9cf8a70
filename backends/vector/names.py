"""What texts of any length and content are called on a server: hashes, as hexadecimal digits."""

from hashlib import blake2b


def encoded(text: str) -> bytes:
    """Any string, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def hashed(text: str, *, size: int) -> str:
    """Of `size` bytes."""
    return blake2b(encoded(text), digest_size=size).hexdigest()


def ancestry(namespace: str, *, size: int) -> list[str]:
    """`hashed` of every namespace above it and of its own: what a prefix may be that clears it."""
    so_far = blake2b(digest_size=size)
    names = []
    for number, step in enumerate(encoded(namespace).split(b"/")):
        so_far.update(b"/" * bool(number) + step)
        names.append(so_far.copy().hexdigest())
    return names
