"""The protocol of a keyring."""

from collections.abc import Sequence
from typing import Protocol

from models.key import VirtualKey


class Keyring(Protocol):
    """Virtual keys by the SHA-256 of their secret. The secret itself is never stored.

    A change is durable when the call returns and seen by the next `find` in
    every process that shares the keyring. `find` answers without waiting: it
    runs on the event loop before every request.
    """

    def find(self, digest: bytes) -> VirtualKey | None: ...

    def add(self, digest: bytes, key: VirtualKey) -> None: ...

    def all(self) -> Sequence[VirtualKey]:
        """In the order of creation, revoked ones included."""

    def revoke(self, key_id: str, at: float) -> VirtualKey | None:
        """The key as it is now; None if there is none of that id."""

    def close(self) -> None: ...
