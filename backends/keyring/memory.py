"""A keyring in the memory of one process."""

from collections.abc import Sequence

import msgspec

from models.key import VirtualKey


class MemoryKeyring:
    """Gone with the process and shared with no other."""

    def __init__(self) -> None:
        self._keys: dict[bytes, VirtualKey] = {}

    def find(self, digest: bytes) -> VirtualKey | None:
        return self._keys.get(digest)

    def add(self, digest: bytes, key: VirtualKey) -> None:
        """Raises `ValueError` for a digest or an id that is there already."""
        if digest in self._keys or any(known.key_id == key.key_id for known in self._keys.values()):
            raise ValueError(f"there is a key {key.key_id!r} or one of the same secret already")
        self._keys[digest] = key

    def all(self) -> Sequence[VirtualKey]:
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.key_id))

    def revoke(self, key_id: str, at: float) -> VirtualKey | None:
        """A key that was revoked before keeps the earlier time."""
        for digest, key in self._keys.items():
            if key.key_id == key_id:
                earliest = at if key.revoked_at is None else min(at, key.revoked_at)
                self._keys[digest] = msgspec.structs.replace(key, revoked_at=earliest)
                return self._keys[digest]
        return None

    def close(self) -> None:
        self._keys.clear()
