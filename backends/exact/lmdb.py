"""An exact store on LMDB: durable, and shared by every process of the machine.

Six tables; integers are native 64-bit unless said otherwise:

| table | key | value |
|---|---|---|
| `entries` | name | expiry (float), number, length of `full`, `full`, the value |
| `records` | number | generation (32-bit), name |
| `ages` | generation (big-endian 32-bit) | numbers (sorted duplicates) |
| `expiries` | second of expiry (big-endian) | numbers (sorted duplicates) |
| `spaces` | space | entries in it, the namespace |
| `state` | `b""` | next number, generation, bytes written in this generation |

A *name* is a space and the key; a *space* is the namespace ended by a zero
byte. So a namespace is one range of `entries`, the namespaces below a prefix
are one range of `spaces`, and sweeping and evicting start at the first item of
`expiries` and `ages`. LMDB's keys end at 511 bytes: what does not fit is cut
and hashed, and `full` then holds the whole of it, compared on every read.

A *generation* lasts while a 64th of the store is written. A read notes the
entry's number in memory; the writer moves noted entries into the current
generation, at most once per generation each. What lies in the oldest
generation goes first, so eviction follows last use to within a 64th.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import lmdb

from backends.environment import open_environment
from backends.exact.base import Stored
from models.errors import BackendError, StoreFull

_log = logging.getLogger(__name__)

_ENTRY = struct.Struct("=dQI")
_NUMBER = struct.Struct("=Q")
_RECORD = struct.Struct("=I")
_SPACE = struct.Struct("=Q")
_STATE = struct.Struct("=QIQ")
_GENERATION = struct.Struct(">I")
_SECOND = struct.Struct(">Q")
_LAST_SECOND = 2**63

_ENCODING, _SURROGATES = "utf-8", "surrogatepass"  # JSON can hold half a surrogate pair
_NAME_LIMIT = 511
_SPACE_LIMIT = 300
_CUT = b"\xff"  # never in UTF-8, so a hashed name cannot be mistaken for a plain one
_KNOWN_SPACES = 10_000

_BATCH_OPERATIONS = 1_000
_BATCH_BYTES = 8 << 20
_OPERATION_BYTES = 500  # what a queued operation costs beside its value
_SIZES_SLICE = 2_000  # namespaces counted before others get their turn
_WALK_SLICE = 64  # entries read before others get their turn
_SWEEP = 1_000  # expired entries a transaction removes
_TICK_SECONDS = 1.0
_READER_CHECK_SECONDS = 30.0

# LMDB reports a short write, as a disk makes that fills up midway, as EIO.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError)

T = TypeVar("T")


class LmdbStore:
    """A read takes no lock and never waits; writes are batched by one thread a process.

    A `put` returns after the commit that holds it. Commits do not wait for the
    disk: an acknowledged write survives the end of the process, also by
    SIGKILL at any moment, and not a power cut, after which the store may be
    found damaged at the next start and begun anew. `close` flushes.

    `max_bytes` bounds the pages in use; the file may grow to a little over
    twice that, room for the copies that copy-on-write needs. `queue_bytes`
    bounds what waits for the writer. When the map or the disk is full some of
    the oldest entries make room; if that does not help, or a write fails
    otherwise, `put` raises `StoreFull` for `pause` seconds without trying.

    Use it from one event loop at a time. One store a path and process.
    """

    def __init__(
        self,
        *,
        path: Path,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.time,
        map_size: int | None = None,
        queue_bytes: int = 32 << 20,
        pause: float = 5.0,
        aside: Callable[[Path], None] | None = None,
    ) -> None:
        """`map_size` overrides how far the file may grow; `aside` is told where a damaged store went.

        Raises `BackendError` for a path that cannot be used.
        """
        self._max_bytes = max_bytes
        self._clock = clock
        self._pause = pause
        self._paused_at: float | None = None
        self._environment = open_environment(
            path,
            map_size=map_size if map_size is not None else 2 * max_bytes + (64 << 20),
            max_dbs=len(_Tables.__slots__),
            sync=False,
            aside=aside,
        )
        try:
            self._tables = _Tables(self._environment.lmdb)
        except lmdb.Error as error:
            self._environment.close()
            raise BackendError(f"the store {path} cannot be used: {error}") from error
        self._begin = self._environment.lmdb.begin
        self._entries = self._tables.entries
        self._spaces: dict[str, bytes] = {}
        self._used: set[int] = set()
        self._queue = _Queue(queue_bytes)
        self._transacting = threading.Lock()  # held by the writer while it has a transaction
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._readers_checked_at = time.monotonic()
        self._writer = threading.Thread(target=self._write, name="exact-store-writer", daemon=True)
        self._writer.start()

    async def get(self, namespace: str, key: str) -> bytes | None:
        name = (self._spaces.get(namespace) or self._space(namespace)) + key.encode(_ENCODING, _SURROGATES)
        if len(name) > _NAME_LIMIT:
            name = _name(self._space(namespace), key)
        try:
            with self._begin(self._entries) as transaction:
                stored = transaction.get(name)
        except lmdb.MapResizedError:
            self._adopt_map_size()
            return await self.get(namespace, key)
        except lmdb.Error as error:
            raise self._failure(error) from error
        if stored is None:
            return None
        expires_at, number, length = _ENTRY.unpack_from(stored)
        if expires_at <= self._clock() or (
            length and stored[_ENTRY.size : _ENTRY.size + length] != _full(namespace, key)
        ):
            return None
        self._used.add(number)
        return stored[_ENTRY.size + length :]

    async def put(self, namespace: str, key: str, value: bytes, *, ttl: float | None) -> None:
        if len(value) > self._max_bytes // 4:
            raise StoreFull(f"a value of {len(value)} bytes would take over a quarter of {self._max_bytes}")
        if self._paused():
            raise StoreFull("writing failed a moment ago and is paused")
        expires_at = float("inf") if ttl is None else self._clock() + ttl
        name = _name(self._space(namespace), key)
        full = _full(namespace, key) if _CUT in name else b""
        await self._ask(lambda batch: batch.put(namespace, name, full, value, expires_at), len(value))

    async def delete(self, namespace: str, key: str) -> bool:
        name = _name(self._space(namespace), key)
        return await self._ask(lambda batch: batch.delete(name), 0)

    async def clear(self, prefix: str) -> int:
        return await self._ask(lambda batch: batch.clear(prefix), 0)

    async def entries(self, prefix: str) -> AsyncIterator[Stored]:
        for namespace in await self.sizes():
            if prefix in ("", namespace) or namespace.startswith(f"{prefix}/"):
                after = space = _space(namespace)
                while after:
                    found, after = self._slice(namespace, space, after)
                    for entry in found:
                        yield entry
                    await asyncio.sleep(0)

    def _slice(self, namespace: str, space: bytes, after: bytes) -> tuple[list[Stored], bytes]:
        """The next live entries of a space whose names come after `after`; and the name they end with, empty at the
        end."""
        found: list[Stored] = []
        try:
            with self._begin(self._entries) as transaction, transaction.cursor() as cursor:
                more = cursor.set_range(after)
                if more and cursor.key() == after:
                    more = cursor.next()
                for _ in range(_WALK_SLICE):
                    if not more or not cursor.key().startswith(space):
                        return found, b""
                    after, stored = cursor.item()
                    expires_at, _, length = _ENTRY.unpack_from(stored)
                    if expires_at > self._clock():
                        full = stored[_ENTRY.size : _ENTRY.size + length]
                        key = full.partition(b"\x00")[2] if length else after[len(space) :]
                        found.append(Stored(namespace, _text(key), stored[_ENTRY.size + length :], expires_at))
                    more = cursor.next()
        except lmdb.MapResizedError:
            self._adopt_map_size()
            return self._slice(namespace, space, after)
        except lmdb.Error as error:
            raise self._failure(error) from error
        return found, after

    async def sizes(self) -> Mapping[str, int]:
        sizes: dict[str, int] = {}
        after = b""
        while True:  # a slice at a time: clients can make many namespaces
            try:
                with self._begin(self._tables.spaces) as transaction:
                    cursor = transaction.cursor()
                    found = cursor.set_range(after) if after else cursor.first()
                    for _ in range(_SIZES_SLICE):
                        if not found:
                            break
                        (count,) = _SPACE.unpack_from(cursor.value())
                        sizes[_text(cursor.value()[_SPACE.size :])] = count
                        found = cursor.next()
                    if not found:
                        return sizes
                    after = cursor.key()
            except lmdb.MapResizedError:
                self._adopt_map_size()
            except lmdb.Error as error:
                raise self._failure(error) from error
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Safe to repeat."""
        if not self._closed:
            self._closed = True
            self._queue.close()
            await asyncio.to_thread(self._writer.join)
            self._begin = _refuse  # from here on no read can meet a map that is going away
            await asyncio.to_thread(self._environment.close)

    def _space(self, namespace: str) -> bytes:
        space = self._spaces.get(namespace)
        if space is None:
            if len(self._spaces) >= _KNOWN_SPACES:
                self._spaces.clear()
            space = self._spaces[namespace] = _space(namespace)
        return space

    def _adopt_map_size(self) -> None:
        # On the loop's thread, where all reads are, so only the writer's transaction is to be waited for.
        try:
            with self._transacting:
                self._environment.adopt_map_size()
        except lmdb.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: lmdb.Error) -> BackendError:
        if isinstance(error, _DAMAGE):
            self._environment.doubt()
        if _lacks_room(error):
            return StoreFull(f"no room to write: {error}")
        return BackendError(f"the exact store failed: {error}")

    async def _ask(self, apply: "Callable[[_Batch], T]", size: int) -> T:
        """What `apply` returned, once it is committed. Cancelling does not take the operation back."""
        loop = self._loop = asyncio.get_running_loop()
        operation = _Operation(apply, size + _OPERATION_BYTES, loop)
        self._queue.append(operation)
        return await operation.answer

    def _write(self) -> None:
        """The writer thread."""
        while True:
            operations, closing = self._queue.take(wait=_TICK_SECONDS)
            if operations:
                self._commit(operations)
            elif closing:
                return
            elif not self._paused():
                self._tidy()

    def _commit(self, operations: "list[_Operation[Any]]") -> None:
        failure: BackendError | None = None
        answers: list[Any] = []
        try:
            answers = self._transact(operations, again=True)
            self._paused_at = None
        except lmdb.Error as error:
            failure = self._failure(error)
            failure.__cause__ = error
            self._pause_after(failure)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for index, operation in enumerate(operations):
            answer = answers[index] if failure is None else None
            by_loop.setdefault(operation.loop, []).append((operation.answer, answer))
        for loop, answered in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, answered, failure)

    def _paused(self) -> bool:
        # Not before the pause began either: then the clock was set back.
        return self._paused_at is not None and 0 <= self._clock() - self._paused_at < self._pause

    def _pause_after(self, failure: BackendError) -> None:
        if self._paused_at is None:
            _log.warning("the exact store pauses writing: %s", failure)
        self._paused_at = self._clock()

    def _transact(self, operations: "list[_Operation[Any]]", *, again: bool) -> list[Any]:
        """One transaction; when it lacks room or a wider map, gets it and tries once more."""
        used = list(self._used)
        try:
            with self._transacting, self._begin(write=True) as transaction:
                batch = _Batch(transaction, self._tables, self._max_bytes, self._clock())
                answers = [operation.apply(batch) for operation in operations]
                batch.use(used)
                batch.sweep(_SWEEP // 10)
                batch.evict(self._max_bytes)
                batch.finish()
        except lmdb.MapResizedError:
            if not (again and self._ask_for_map_size()):
                raise
            return self._transact(operations, again=False)
        except lmdb.Error as error:
            # A full map is this store's own doing. A full disk is not: while it
            # lasts, one try at making room is all the entries it may cost.
            full = isinstance(error, lmdb.MapFullError) or (_lacks_room(error) and self._paused_at is None)
            if not (again and full):
                raise
            self._make_room()
            return self._transact(operations, again=False)
        self._used.difference_update(used)
        return answers

    def _make_room(self) -> None:
        """Evicts a sixteenth of what is there, in halves: LMDB reuses a page two transactions after it was freed."""
        self._environment.lmdb.reader_check()  # a reader that was killed keeps every page since its start
        for _ in range(2):
            with self._transacting, self._begin(write=True) as transaction:
                batch = _Batch(transaction, self._tables, self._max_bytes, self._clock())
                batch.evict(batch.bytes_used() * 31 // 32)
                batch.finish()

    def _ask_for_map_size(self) -> bool:
        """From the writer: lets the loop's thread adopt the map's size, and says whether it did."""
        if self._loop is None:
            return False
        done = threading.Event()

        def adopt() -> None:
            with contextlib.suppress(BackendError):  # then the transaction fails again, and says why
                self._adopt_map_size()
            done.set()

        try:
            self._loop.call_soon_threadsafe(adopt)
        except RuntimeError:  # the loop is closed
            return False
        return done.wait(_TICK_SECONDS)

    def _tidy(self) -> None:
        """Between writes: notes uses, sweeps what has expired, frees the slots of readers that were killed."""
        try:
            if time.monotonic() - self._readers_checked_at > _READER_CHECK_SECONDS:
                self._readers_checked_at = time.monotonic()
                self._environment.lmdb.reader_check()
            used = list(self._used)
            more = True
            while more and not self._queue.waiting():
                with self._transacting, self._begin() as transaction:
                    reading = _Batch(transaction, self._tables, self._max_bytes, self._clock())
                    stale = reading.anything_older(used)
                    more = reading.anything_expired()
                if stale or more:
                    with self._transacting, self._begin(write=True) as transaction:
                        batch = _Batch(transaction, self._tables, self._max_bytes, self._clock())
                        batch.use(used)
                        batch.sweep(_SWEEP)
                        batch.finish()
                self._used.difference_update(used)
                used = []
        except lmdb.MapResizedError:
            self._ask_for_map_size()
        except lmdb.Error as error:
            self._pause_after(self._failure(error))


class _Tables:
    __slots__ = ("ages", "entries", "expiries", "records", "spaces", "state")

    def __init__(self, environment: lmdb.Environment) -> None:
        with environment.begin(write=True) as transaction:
            self.entries = environment.open_db(b"entries", transaction)
            self.records = environment.open_db(b"records", transaction, integerkey=True)
            numbers = {"dupsort": True, "dupfixed": True, "integerdup": True}
            self.ages = environment.open_db(b"ages", transaction, **numbers)
            self.expiries = environment.open_db(b"expiries", transaction, **numbers)
            self.spaces = environment.open_db(b"spaces", transaction)
            self.state = environment.open_db(b"state", transaction)


class _Operation(Generic[T]):
    __slots__ = ("answer", "apply", "loop", "size")

    def __init__(self, apply: "Callable[[_Batch], T]", size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.apply = apply
        self.size = size
        self.loop = loop
        self.answer: asyncio.Future[T] = loop.create_future()


def _resolve(answered: "list[tuple[asyncio.Future[Any], Any]]", failure: BackendError | None) -> None:
    for future, answer in answered:
        if future.done():  # cancelled
            continue
        if failure is None:
            future.set_result(answer)
        else:
            own = type(failure)(str(failure))  # one each: raising adds to an exception's traceback
            own.__cause__ = failure.__cause__
            future.set_exception(own)


class _Queue:
    """Operations on their way to the writer, bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._operations: deque[_Operation[Any]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def append(self, operation: _Operation[Any]) -> None:
        with self._changed:
            if self._closed:
                raise BackendError("the exact store is closed")
            if self._bytes and self._bytes + operation.size > self._limit:
                raise StoreFull(f"{self._bytes} bytes wait to be written already")
            self._operations.append(operation)
            self._bytes += operation.size
            self._changed.notify()

    def take(self, *, wait: float) -> tuple[list[_Operation[Any]], bool]:
        """Everything that waits, up to a batch, and whether nothing will follow. Empty after `wait` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._operations or self._closed, wait)
            taken: list[_Operation[Any]] = []
            size = 0
            while self._operations and len(taken) < _BATCH_OPERATIONS and size < _BATCH_BYTES:
                operation = self._operations.popleft()
                size += operation.size
                taken.append(operation)
            self._bytes -= size
            return taken, self._closed

    def waiting(self) -> bool:
        return bool(self._operations) or self._closed

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


class _Batch:
    """The tables within one transaction. What it counts is written by `finish`."""

    def __init__(self, transaction: "lmdb.Transaction[bytes]", tables: _Tables, max_bytes: int, now: float) -> None:
        self._transaction = transaction
        self._tables = tables
        self._generation_bytes = max_bytes // 64
        self._now = now
        self._added: Counter[bytes] = Counter()  # entries by space, removed ones negative
        self._namespaces: dict[bytes, str] = {}
        state = transaction.get(b"state", db=tables.state)
        self._next, self._generation, self._written = _STATE.unpack(state) if state else (1, 1, 0)
        self._page_size = transaction.stat(tables.state)["psize"]

    def put(self, namespace: str, name: bytes, full: bytes, value: bytes, expires_at: float) -> None:
        self._remove(name)
        number = _NUMBER.pack(self._next)
        entry = b"".join((_ENTRY.pack(expires_at, self._next, len(full)), full, value))
        write = self._transaction.put
        write(name, entry, db=self._tables.entries)
        write(number, _RECORD.pack(self._generation) + name, db=self._tables.records)
        write(_GENERATION.pack(self._generation), number, db=self._tables.ages)
        if expires_at != float("inf"):
            write(_second(expires_at), number, db=self._tables.expiries)
        space = _space_of(name)
        self._added[space] += 1
        self._namespaces[space] = namespace
        self._next += 1
        self._written += len(entry)
        if self._written >= self._generation_bytes:
            self._generation += 1
            self._written = 0

    def delete(self, name: bytes) -> bool:
        expires_at = self._remove(name)
        return expires_at is not None and expires_at > self._now

    def clear(self, prefix: str) -> int:
        self._count()
        tables = self._tables
        if not prefix:
            with self._transaction.cursor(tables.spaces) as cursor:
                gone: int = sum(_SPACE.unpack_from(value)[0] for value in cursor.iternext(keys=False))
            for table in (tables.entries, tables.records, tables.ages, tables.expiries, tables.spaces):
                self._transaction.drop(table, delete=False)
            return gone
        names = [name for space in self._below(prefix) for name in self._names(space)]
        for name in names:
            self._remove(name)
        return len(names)

    def use(self, numbers: Collection[int]) -> None:
        """Moves these entries, where they still are, into the current generation."""
        current = _GENERATION.pack(self._generation)
        for number, record in self._older(numbers):
            (generation,) = _RECORD.unpack_from(record)
            self._transaction.delete(_GENERATION.pack(generation), number, db=self._tables.ages)
            self._transaction.put(current, number, db=self._tables.ages)
            moved = _RECORD.pack(self._generation) + record[_RECORD.size :]
            self._transaction.put(number, moved, db=self._tables.records)

    def anything_older(self, numbers: Collection[int]) -> bool:
        return next(self._older(numbers), None) is not None

    def sweep(self, limit: int) -> None:
        """Removes at most `limit` entries whose second of expiry is over."""
        with self._transaction.cursor(self._tables.expiries) as cursor:
            while limit and cursor.first() and cursor.key() < _second(self._now):
                self._remove_number(cursor)
                limit -= 1

    def anything_expired(self) -> bool:
        with self._transaction.cursor(self._tables.expiries) as cursor:
            return cursor.first() and cursor.key() < _second(self._now)

    def evict(self, limit: int) -> None:
        """Removes entries of the oldest generation until at most `limit` bytes of pages are in use."""
        with self._transaction.cursor(self._tables.ages) as cursor:
            while self.bytes_used() > limit and cursor.first():
                self._remove_number(cursor)

    def bytes_used(self) -> int:
        pages = 0
        tables = self._tables
        for table in (tables.entries, tables.records, tables.ages, tables.expiries, tables.spaces):
            stat = self._transaction.stat(table)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * self._page_size

    def finish(self) -> None:
        self._count()
        state = _STATE.pack(self._next, self._generation, self._written)
        self._transaction.put(b"state", state, db=self._tables.state)

    def _remove(self, name: bytes) -> float | None:
        """When it would have expired; None if there is no such entry."""
        entry = self._transaction.pop(name, db=self._tables.entries)
        if entry is None:
            return None
        expires_at, number, _ = _ENTRY.unpack_from(entry)
        packed = _NUMBER.pack(number)
        record = self._transaction.pop(packed, db=self._tables.records)
        if record is not None:
            (generation,) = _RECORD.unpack_from(record)
            self._transaction.delete(_GENERATION.pack(generation), packed, db=self._tables.ages)
        if expires_at != float("inf"):
            self._transaction.delete(_second(expires_at), packed, db=self._tables.expiries)
        self._added[_space_of(name)] -= 1
        return float(expires_at)

    def _remove_number(self, cursor: "lmdb.Cursor[bytes]") -> None:
        """The entry whose number the cursor is on."""
        record = self._transaction.get(cursor.value(), db=self._tables.records)
        if record is None or self._remove(record[_RECORD.size :]) is None:
            cursor.delete()  # an index item without its entry would be met for ever

    def _older(self, numbers: Collection[int]) -> Iterator[tuple[bytes, bytes]]:
        for number in numbers:
            packed = _NUMBER.pack(number)
            record = self._transaction.get(packed, db=self._tables.records)
            if record is not None and _RECORD.unpack_from(record)[0] < self._generation:
                yield packed, record

    def _below(self, prefix: str) -> list[bytes]:
        start = _escaped(prefix)[:_SPACE_LIMIT]
        found: list[bytes] = []
        with self._transaction.cursor(self._tables.spaces) as cursor:
            if cursor.set_range(start):
                for space, value in cursor.iternext():
                    if not space.startswith(start):
                        break
                    namespace = _text(value[_SPACE.size :])
                    if namespace == prefix or namespace.startswith(f"{prefix}/"):
                        found.append(space)
        return found

    def _names(self, space: bytes) -> list[bytes]:
        found: list[bytes] = []
        with self._transaction.cursor(self._tables.entries) as cursor:
            if cursor.set_range(space):
                for name in cursor.iternext(values=False):
                    if not name.startswith(space):
                        break
                    found.append(name)
        return found

    def _count(self) -> None:
        for space, added in self._added.items():
            if not added:
                continue
            known = self._transaction.get(space, db=self._tables.spaces)
            count = added + (_SPACE.unpack_from(known)[0] if known else 0)
            if count > 0:
                namespace = known[_SPACE.size :] if known else _bytes(self._namespaces[space])
                self._transaction.put(space, _SPACE.pack(count) + namespace, db=self._tables.spaces)
            else:
                self._transaction.delete(space, db=self._tables.spaces)
        self._added.clear()


def _bytes(text: str) -> bytes:
    return text.encode(_ENCODING, _SURROGATES)


def _text(encoded: bytes) -> str:
    return encoded.decode(_ENCODING, _SURROGATES)


def _escaped(namespace: str) -> bytes:
    """Without zero bytes, prefixes kept."""
    return _bytes(namespace).replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")


def _space(namespace: str) -> bytes:
    escaped = _escaped(namespace)
    if len(escaped) > _SPACE_LIMIT:
        digest = hashlib.blake2b(escaped, digest_size=32).hexdigest().encode()
        escaped = escaped[:_SPACE_LIMIT] + _CUT + digest
    return escaped + b"\x00"


def _space_of(name: bytes) -> bytes:
    return name[: name.index(0) + 1]


def _name(space: bytes, key: str) -> bytes:
    name = space + _bytes(key)
    if len(name) > _NAME_LIMIT:
        name = space + _CUT + hashlib.blake2b(_bytes(key), digest_size=32).digest()
    return name


def _full(namespace: str, key: str) -> bytes:
    return _escaped(namespace) + b"\x00" + _bytes(key)


def _second(expires_at: float) -> bytes:
    return _SECOND.pack(int(min(max(expires_at, 0), _LAST_SECOND)))


def _lacks_room(error: lmdb.Error) -> bool:
    return isinstance(error, lmdb.MapFullError) or error.code in _NO_ROOM


def _refuse(*_: Any, **__: Any) -> Any:
    raise BackendError("the exact store is closed")
