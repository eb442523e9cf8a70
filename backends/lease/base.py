"""The protocol of leases."""

from typing import Protocol


class Leases(Protocol):
    """At most one owner a key, until it releases or its time is over.

    An owner that was killed is in the way for the rest of its time and no
    longer. A server that fails over may grant a key twice: a lease spares
    work, and nothing may depend on it that must not happen twice. Failures are
    `BackendError`; deadlines belong to the caller. Times are seconds.
    """

    async def acquire(self, key: str, *, owner: str, seconds: float) -> bool:
        """False while anybody holds it, `owner` too."""

    async def renew(self, key: str, *, owner: str, seconds: float) -> bool:
        """From now; False if it is not `owner`'s (any more)."""

    async def release(self, key: str, *, owner: str) -> bool:
        """False if it was not `owner`'s (any more): another's stays."""

    async def held(self, key: str) -> bool:
        """By anybody."""

    async def close(self) -> None: ...
