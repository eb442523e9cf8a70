"""The protocol of an exact store."""

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol


class Stored(NamedTuple):
    """`expires_at` in seconds since the epoch, infinite without a TTL."""

    namespace: str
    key: str
    value: bytes
    expires_at: float


class ExactStore(Protocol):
    """Bytes by namespace and key.

    Namespaces are `/`-joined paths without empty segments, such as
    `support/team:blue`. A value past its TTL is never returned. Failures are
    `BackendError`, a full store `StoreFull`. Deadlines belong to the caller.
    """

    async def get(self, namespace: str, key: str) -> bytes | None: ...

    async def put(self, namespace: str, key: str, value: bytes, *, ttl: float | None) -> None:
        """Returns when every process that shares the store can see the value. `ttl` in seconds, None for ever."""

    async def delete(self, namespace: str, key: str) -> bool:
        """Whether there was something to delete."""

    async def clear(self, prefix: str) -> int:
        """Removes the namespace `prefix` and all below it (`prefix/…`); `""` is everything. How many went."""

    def entries(self, prefix: str) -> AsyncIterator[Stored]:
        """Every live entry of the namespace `prefix` and all below it, once, in any order, a few at a time. Of what is
        written or goes meanwhile it may have the one or the other."""

    async def sizes(self) -> Mapping[str, int]:
        """Entries by namespace; expired ones that were not swept yet may be counted."""

    async def close(self) -> None:
        """Writes accepted before are kept."""
