"""A keyring on LMDB, shared by every process of the machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgspec

from backends.environment import open_environment
from models.errors import BackendError
from models.key import VirtualKey

_MAP_SIZE = 256 << 20  # a million keys


class LmdbKeyring:
    """A change waits for the disk, so it outlives a power cut too.

    Two tables: `keys` from digest to key (msgpack), `digests` from id to
    digest. Nothing is held in memory between two calls, which is why a change
    made by one process is seen by the next `find` of all.

    The constructor raises `BackendError` for a path that cannot be used. A
    damaged file is moved aside: its keys are then unknown, and refused.
    """

    def __init__(self, *, path: Path) -> None:
        self._environment = open_environment(path, map_size=_MAP_SIZE, max_dbs=2, sync=True)
        try:
            self._keys = self._environment.lmdb.open_db(b"keys")
            self._digests = self._environment.lmdb.open_db(b"digests")
        except lmdb.Error as error:
            self._environment.close()
            raise BackendError(f"the keyring {path} cannot be used: {error}") from error
        self._begin = self._environment.lmdb.begin
        self._decode = msgspec.msgpack.Decoder(VirtualKey).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def find(self, digest: bytes) -> VirtualKey | None:
        try:
            with self._begin(self._keys) as transaction:
                found = transaction.get(digest)
        except lmdb.Error as error:
            raise BackendError(f"the keyring cannot be read: {error}") from error
        return None if found is None else self._decoded(found)

    def add(self, digest: bytes, key: VirtualKey) -> None:
        """Raises `ValueError` for a digest or an id that is there already."""
        with self._writing() as transaction:
            if not (
                transaction.put(digest, self._encode(key), overwrite=False, db=self._keys)
                and transaction.put(key.key_id.encode(), digest, overwrite=False, db=self._digests)
            ):
                raise ValueError(f"there is a key {key.key_id!r} or one of the same secret already")

    def all(self) -> Sequence[VirtualKey]:
        try:
            with self._begin(self._keys) as transaction:
                found = [value for _, value in transaction.cursor()]
        except lmdb.Error as error:
            raise BackendError(f"the keyring cannot be read: {error}") from error
        return sorted(map(self._decoded, found), key=lambda key: (key.created_at, key.key_id))

    def revoke(self, key_id: str, at: float) -> VirtualKey | None:
        """A key that was revoked before keeps the earlier time."""
        with self._writing() as transaction:
            digest = transaction.get(key_id.encode(), db=self._digests)
            found = None if digest is None else transaction.get(digest, db=self._keys)
            if digest is None or found is None:
                return None
            key = self._decoded(found)
            earliest = at if key.revoked_at is None else min(at, key.revoked_at)
            key = msgspec.structs.replace(key, revoked_at=earliest)
            transaction.put(digest, self._encode(key), db=self._keys)
            return key

    def close(self) -> None:
        self._environment.close()

    def _decoded(self, value: bytes) -> VirtualKey:
        try:
            return self._decode(value)
        except msgspec.DecodeError as error:
            raise BackendError("the keyring holds a key this version cannot read") from error

    @contextmanager
    def _writing(self) -> "Iterator[lmdb.Transaction[bytes]]":
        try:
            with self._begin(write=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise BackendError(f"the keyring cannot be written: {error}") from error
