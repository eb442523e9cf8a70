"""The durable side of the embedded vector store: entries and removals in LMDB under one growing number.

An entry is written once, under the next number, and never changed: to replace
it is to remove it and to write another. So whoever has seen everything up to
a number catches up by reading what lies above it, in any order. Tables, big-endian keys:

    entries     number -> when it expires, namespace key, id key, vector
    payloads    number -> length of the id, id, payload
    places      namespace key + id key -> number
    namespaces  namespace key -> name
    expiries    when + number -> nothing
    removals    number -> when it was written, then (namespace key, number) of each entry that went
    state       `last`: the highest number given out; `horizon`: removals up to here are forgotten;
                `identity`: 16 bytes that no other log has

Payloads lie apart from vectors so that a start does not read them. A removal
takes as many numbers as entries went, which makes the difference of two
numbers a measure of the work between them.
"""

import math
import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

import lmdb
import numpy as np
from numpy.typing import NDArray

from backends.vector.base import StoredVector, Vector

TABLES = ("entries", "payloads", "places", "namespaces", "expiries", "removals", "state")

Reading: TypeAlias = "lmdb.Transaction[bytes | memoryview]"
Writing: TypeAlias = "lmdb.Transaction[bytes]"

_NUMBER = struct.Struct(">Q")
_EXPIRY = struct.Struct(">dQ")
_HEAD = struct.Struct(">d16s16s")
_WRITTEN_AT = struct.Struct(">d")
_GONE = struct.Struct(">16sQ")
_ID_LENGTH = struct.Struct(">I")


class LoggedEntry(NamedTuple):
    """`vector` is a view that ends with the transaction; `expires_at` is infinite without a TTL."""

    number: int
    namespace: bytes
    expires_at: float
    vector: Vector


def key_of(name: str) -> bytes:
    """16 bytes that stand for a namespace or an id: LMDB's keys are short, names need not be."""
    return blake2b(name.encode(), digest_size=16).digest()


class VectorLog:
    """Every method works inside the caller's transaction; those that write need a writing one."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self._page_bytes: int = environment.stat()["psize"]
        databases = [environment.open_db(name.encode()) for name in TABLES]
        self._databases = databases
        self._entries, self._payloads, self._places, self._namespaces = databases[:4]
        self._expiries, self._removals, self._state = databases[4:]

    # What a reader follows.

    def last(self, txn: Reading) -> int:
        return self._number(txn, b"last")

    def horizon(self, txn: Reading) -> int:
        """Who has not seen everything up to here starts again from nothing."""
        return self._number(txn, b"horizon")

    def entries_after(self, txn: Reading, number: int) -> Iterator[LoggedEntry]:
        """In the order of their numbers. The transaction must have been begun with `buffers=True`."""
        with txn.cursor(self._entries) as cursor:
            if cursor.set_range(_NUMBER.pack(number + 1)):
                for key, value in cursor:
                    yield _logged(_NUMBER.unpack(key)[0], value)

    def removals_after(self, txn: Reading, number: int) -> Iterator[tuple[bytes, int]]:
        """The namespace key and the number of each entry that went."""
        with txn.cursor(self._removals) as cursor:
            if cursor.set_range(_NUMBER.pack(number + 1)):
                for _, value in cursor:
                    yield from _GONE.iter_unpack(value[_WRITTEN_AT.size :])

    def identity(self, txn: Reading) -> bytes:
        """What tells this log from one that gave out the same numbers; zeros before anything was written."""
        return bytes(txn.get(b"identity", db=self._state) or bytes(16))

    def numbers(self, txn: Reading) -> dict[bytes, NDArray[np.int64]]:
        """Of every entry, ascending, by namespace key."""
        found: dict[bytes, list[int]] = {}
        with txn.cursor(self._places) as cursor:
            for place, number in cursor:
                found.setdefault(bytes(place[:16]), []).append(_NUMBER.unpack(number)[0])
        return {key: np.sort(np.array(numbers, dtype=np.int64)) for key, numbers in found.items()}

    def entry(self, txn: Reading, number: int) -> LoggedEntry:
        """One that the same transaction saw."""
        return _logged(number, txn.get(_NUMBER.pack(number), db=self._entries) or b"")

    def page(
        self, txn: Reading, prefix: str, *, after: bytes, now: float, at_most: int, at_most_bytes: int
    ) -> tuple[list[StoredVector], bytes | None]:
        """Live entries of the namespace `prefix` and all below it, and what to go on `after`: `b""` first, None last.

        `at_most` counts what is looked at, so that a page is read in bounded time.
        """
        page: list[StoredVector] = []
        looked, size = 0, 0
        root, below = prefix.encode(), f"{prefix}/".encode()
        with txn.cursor(self._namespaces) as spaces, txn.cursor(self._places) as places:
            more = spaces.set_range(after[:16]) if after else spaces.first()
            while more:
                key, name = bytes(spaces.key()), bytes(spaces.value())
                more = not prefix or name == root or name.startswith(below)
                start = after if after[:16] == key else key
                more = more and places.set_range(start)
                while more and places.key()[:16] == key:
                    place = bytes(places.key())
                    if place != after:
                        if looked >= at_most or size >= at_most_bytes:
                            return page, after
                        number = _NUMBER.unpack(places.value())[0]
                        found = self.entry(txn, number)
                        if found.expires_at > now:
                            entry_id, payload = self.payload(txn, number)
                            page.append(
                                StoredVector(name.decode(), entry_id, found.vector.copy(), payload, found.expires_at)
                            )
                            size += len(payload)
                        looked += 1
                        after = place
                    more = places.next()
                after = key + b"\xff" * 16
                looked += 1
                more = spaces.next()
                if more and looked >= at_most:
                    return page, after
        return page, None

    def payload(self, txn: Reading, number: int) -> tuple[str, bytes]:
        """The id and the payload of an entry that the same transaction saw."""
        value = memoryview(txn.get(_NUMBER.pack(number), db=self._payloads) or b"")
        (length,) = _ID_LENGTH.unpack_from(value)
        start = _ID_LENGTH.size + length
        return str(value[_ID_LENGTH.size : start], "utf-8"), bytes(value[start:])

    def size(self, txn: Reading) -> int:
        """Entries, also those that have expired and were not swept."""
        entries: int = txn.stat(self._entries)["entries"]
        return entries

    def live(self, txn: Reading, *, now: float) -> int:
        """How many entries have not expired."""
        expired = sum(1 for _ in self._expired(txn, now))
        return self.size(txn) - expired

    # What the writer does.

    def add(
        self,
        txn: Writing,
        namespace: str,
        entry_id: str,
        vector: bytes,
        payload: bytes,
        *,
        expires_at: float,
        now: float,
    ) -> None:
        namespace_key, id_key = key_of(namespace), key_of(entry_id)
        place = namespace_key + id_key
        replaced = txn.get(place, db=self._places)
        if replaced is not None:
            self._remove(txn, [_NUMBER.unpack(replaced)[0]], now=now)
        number = self._advance(txn, by=1)
        key = _NUMBER.pack(number)
        identity = entry_id.encode()
        txn.put(key, _HEAD.pack(expires_at, namespace_key, id_key) + vector, db=self._entries, append=True)
        txn.put(key, _ID_LENGTH.pack(len(identity)) + identity + payload, db=self._payloads, append=True)
        txn.put(place, key, db=self._places)
        txn.put(namespace_key, namespace.encode(), db=self._namespaces, overwrite=False)
        if expires_at < math.inf:
            txn.put(_EXPIRY.pack(expires_at, number), b"", db=self._expiries)

    def delete(self, txn: Writing, namespace: str, entry_id: str, *, now: float) -> None:
        number = txn.get(key_of(namespace) + key_of(entry_id), db=self._places)
        if number is not None:
            self._remove(txn, [_NUMBER.unpack(number)[0]], now=now)

    def clear(self, txn: Writing, prefix: str, *, now: float, at_most: int) -> tuple[int, bool]:
        """How many live entries went, and whether more are left because `at_most` was reached."""
        expired = {number for number, _ in self._expired(txn, now)}
        root, below = prefix.encode(), f"{prefix}/".encode()
        numbers: list[int] = []
        with txn.cursor(self._namespaces) as spaces, txn.cursor(self._places) as places:
            for namespace_key, name in spaces:
                if not prefix or name == root or name.startswith(below):
                    numbers += self._numbers_in(places, namespace_key, at_most - len(numbers))
                    if len(numbers) >= at_most:
                        break
        self._remove(txn, numbers, now=now)
        return sum(1 for number in numbers if number not in expired), len(numbers) >= at_most

    def sweep(self, txn: Writing, *, now: float, at_most: int) -> int:
        """Removes entries that have expired, longest ago first. How many."""
        numbers = [number for number, _ in zip(self._expired(txn, now), range(at_most), strict=False)]
        return self._remove(txn, [number for number, _ in numbers], now=now)

    def evict(self, txn: Writing, *, share: int, now: float) -> int:
        """Removes one of `share` entries, those written first; at least one, at most a thousand. How many."""
        count = max(1, min(self.size(txn) // share, 1_000))
        with txn.cursor(self._entries) as cursor:
            keys = [key for key, _ in zip(cursor.iternext(values=False), range(count), strict=False)]
        return self._remove(txn, [_NUMBER.unpack(key)[0] for key in keys], now=now)

    def make_room(self, txn: Writing, *, max_entries: int, max_bytes: int, now: float) -> None:
        """Evicts a hundredth at a time, so that a full store does not evict with every write."""
        if self.size(txn) >= max_entries:
            self.evict(txn, share=100, now=now)
        while self._used_bytes(txn) > max_bytes and self.evict(txn, share=100, now=now):
            pass

    def forget_removals(self, txn: Writing, *, before: float) -> None:
        """Drops removals written before that time; who slept through them starts again from the entries."""
        with txn.cursor(self._removals) as cursor:
            forgotten = None
            while cursor.first() and _WRITTEN_AT.unpack_from(cursor.value())[0] < before:
                forgotten = bytes(cursor.key())
                cursor.delete()
        if forgotten is not None:
            txn.put(b"horizon", forgotten, db=self._state)

    def _remove(self, txn: Writing, numbers: list[int], *, now: float) -> int:
        gone = bytearray(_WRITTEN_AT.pack(now))
        for number in numbers:
            key = _NUMBER.pack(number)
            head = txn.pop(key, db=self._entries) or b""
            expires_at, namespace_key, id_key = _HEAD.unpack_from(head)
            txn.delete(key, db=self._payloads)
            txn.delete(namespace_key + id_key, db=self._places)
            if expires_at < math.inf:
                txn.delete(_EXPIRY.pack(expires_at, number), db=self._expiries)
            with txn.cursor(self._places) as places:
                if not self._numbers_in(places, namespace_key, 1):
                    txn.delete(namespace_key, db=self._namespaces)
            gone += _GONE.pack(namespace_key, number)
        if numbers:
            at = self._advance(txn, by=len(numbers))
            txn.put(_NUMBER.pack(at), bytes(gone), db=self._removals, append=True)
        return len(numbers)

    def _advance(self, txn: Writing, *, by: int) -> int:
        last = self.last(txn)
        if not last:
            txn.put(b"identity", os.urandom(16), db=self._state)
        number = last + by
        txn.put(b"last", _NUMBER.pack(number), db=self._state)
        return number

    def _number(self, txn: Reading, name: bytes) -> int:
        value = txn.get(name, db=self._state)
        return 0 if value is None else _NUMBER.unpack(value)[0]

    def _expired(self, txn: Reading, now: float) -> Iterator[tuple[int, float]]:
        with txn.cursor(self._expiries) as cursor:
            for key in cursor.iternext(values=False):
                expires_at, number = _EXPIRY.unpack(key)
                if expires_at > now:
                    return
                yield number, expires_at

    def _numbers_in(self, places: "lmdb.Cursor[bytes]", namespace_key: bytes, at_most: int) -> list[int]:
        numbers: list[int] = []
        if places.set_range(namespace_key):
            for key, number in places:
                if len(numbers) >= at_most or key[:16] != namespace_key:
                    break
                numbers.append(_NUMBER.unpack(number)[0])
        return numbers

    def _used_bytes(self, txn: Reading) -> int:
        stats = [txn.stat(database) for database in self._databases]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return pages * self._page_bytes


def _logged(number: int, value: bytes | memoryview) -> LoggedEntry:
    expires_at, namespace, _ = _HEAD.unpack_from(value)
    return LoggedEntry(number, namespace, expires_at, np.frombuffer(value, dtype=np.float32, offset=_HEAD.size))
