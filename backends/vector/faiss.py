"""The embedded vector store: one machine's processes share it through LMDB, each searches its own memory."""

import asyncio
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import lmdb
import numpy as np
from numpy.typing import NDArray

from backends.environment import open_environment
from backends.process_lock import alone
from backends.vector import snapshot
from backends.vector.base import Neighbor, StoredVector, Vector
from backends.vector.checks import check_shape
from backends.vector.hnsw import Interrupted, Part, Segment, Title, grow, single_threaded
from backends.vector.log import TABLES, LoggedEntry, Reading, VectorLog, Writing, key_of
from backends.vector.rows import Rows, View, closest, ranked
from backends.vector.writer import Writer
from models.errors import BackendError

_INLINE_ROWS = 20_000  # compared in 0.8 ms; more are compared in a thread
_EXACT_BELOW = 20_000  # 0.8 ms, against 0.26 ms in a graph and the way to a thread and back
_INLINE_EVENTS = 64  # read in 0.3 ms
_ROOM = 0.85  # of the map: LMDB writes new pages before it frees the old ones
_MAX_WAITING = 64 << 20
_UPKEEP_SECONDS = 10.0
_UPKEEP_STEP = 1_000  # entries a transaction, so that writers get in between
_REMOVALS_KEPT_SECONDS = 600.0  # sixty times as long as a process takes to see them
_UNUSED_SECONDS = 7 * 24 * 3600.0
_INDEX_SECONDS = 1.0
_SEGMENT_RATIO = 10  # so that a million rows stand in three or four, and each is moved about as often
_PAGE_ENTRIES = 256  # read in 2 ms
_PAGE_BYTES = 4 << 20
_SWEPT_WITH_A_WRITE = 4  # keeps up with any rate of writes without a long sweep
_LAYOUT = 1  # of the tables; another number begins another directory

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class FaissStore:
    """Entries outlive the process, also `kill -9`; a power cut may cost all of them, as it may any cache.

    Each revision of an embedder has its own directory below `path`, so that
    its vectors meet no others; one that no process has used for a week is
    removed when another is opened.

    A namespace of more than `exact_below` entries is searched through an HNSW
    graph, which one of the processes makes and writes beside the log, and all
    map into memory. What was written since is compared one by one.

    Past `max_entries`, or when the entries fill `max_bytes` of disk, those
    written first make room, about a hundredth at a time. All processes on one
    `path` must be given the same `max_bytes`.
    """

    def __init__(
        self,
        *,
        path: Path,
        dimensions: int,
        revision: str,
        max_entries: int = 1_000_000,
        max_bytes: int = 16 << 30,
        exact_below: int = _EXACT_BELOW,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Blocks while the file is checked; entries are read into memory in a thread. Raises `BackendError`."""
        self.dimensions = dimensions
        self._max_entries = max_entries
        self._exact_below = exact_below
        self._max_bytes = int(max_bytes * _ROOM)
        self._clock = clock
        self._directory = _directory(path, revision, dimensions)
        with suppress(OSError):  # it may not be there, or not be ours: opening says so
            os.utime(self._directory)
        self._environment = open_environment(self._directory, map_size=max_bytes, max_dbs=len(TABLES), sync=False)
        _remove_unused(path)
        try:
            self._log = VectorLog(self._environment.lmdb)
            entries = self._entries()
        except (lmdb.Error, BackendError) as error:
            self._environment.close()
            raise BackendError(f"{self._directory} cannot be used: {error}") from error
        if entries > min(_INLINE_ROWS, exact_below) // 4:
            single_threaded()  # better now than when it is needed
        self._namespaces: dict[bytes, Rows] = {}
        self._seen = 0
        self._begun = False
        self._grown: set[bytes] = set()  # namespaces that may want an index
        self._lock = threading.Lock()  # of the four above; the event loop tries it and never waits
        self._wake = threading.Event()  # of the indexer
        self._settled = threading.Event()  # nothing grew, or what did is indexed
        self._refused: set[Title] = set()
        self._closed = False
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="vector-reader")
        self._writer = Writer(
            self._environment.lmdb,
            relieve=self._relieve,
            upkeep=self._upkeep,
            upkeep_every=_UPKEEP_SECONDS,
            max_waiting=_MAX_WAITING,
        )
        self._reader.submit(self._catch_up)
        self._indexer = threading.Thread(target=self._keep_indexed, name="vector-indexer", daemon=True)
        self._indexer.start()

    async def load(self) -> None:
        """Returns when every entry is in memory; searches wait for that by themselves. Raises `BackendError`."""
        await asyncio.wrap_future(self._submit(self._catch_up))

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        row = self._checked(vector).tobytes()
        now = self._clock()
        expires_at = math.inf if ttl is None else now + ttl

        def write(txn: Writing) -> None:
            self._log.sweep(txn, now=now, at_most=_SWEPT_WITH_A_WRITE)
            self._log.make_room(txn, max_entries=self._max_entries, max_bytes=self._max_bytes, now=now)
            self._log.add(txn, namespace, entry_id, row, payload, expires_at=expires_at, now=now)

        await self._writer.write(write, size=len(row) + len(payload))

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        query = self._checked(vector)
        key = key_of(namespace)
        found = self._search_at_once(key, query, limit)
        if found is None:
            found = await asyncio.wrap_future(self._submit(partial(self._search, key, query, limit)))
        return found

    async def delete(self, namespace: str, entry_id: str) -> None:
        now = self._clock()
        await self._writer.write(lambda txn: self._log.delete(txn, namespace, entry_id, now=now))

    async def clear(self, prefix: str) -> int:
        """Goes in steps that others may write between; safe to repeat after a failure."""
        count, more = 0, True
        while more:
            cleared, more = await self._writer.write(partial(self._clear, prefix))
            count += cleared
        return count

    async def indexed(self) -> None:
        """Returns when every entry is where it is found fastest; minutes after a million were written."""
        await self.load()
        await asyncio.to_thread(self._settled.wait)

    async def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        after: bytes | None = b""
        while after is not None:
            page, after = await asyncio.wrap_future(self._submit(partial(self._page, prefix, after)))
            for stored in page:
                yield stored

    async def count(self) -> int:
        return await asyncio.wrap_future(self._submit(self._live))

    async def sweep(self) -> int:
        """Removes what has expired, as happens by itself every few seconds. How many."""
        count = 0
        while swept := await self._writer.write(self._sweep):
            count += swept
        return count

    async def close(self) -> None:
        """Writes accepted before are kept. Safe to repeat."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._wake.set()
        self._writer.close()
        self._indexer.join()
        self._reader.shutdown()
        with self._lock:
            self._namespaces = {}
            self._environment.close()

    # Searches.

    def _search_at_once(self, key: bytes, query: Vector, limit: int) -> list[Neighbor] | None:
        """None if it would take long, or would have to wait."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            with self._reading() as txn:
                last = self._log.last(txn)
                if last != self._seen:
                    if not self._begun or last - self._seen > _INLINE_EVENTS or self._log.horizon(txn) > self._seen:
                        return None
                    self._follow(txn)
                rows = self._namespaces.get(key)
                if rows is None:
                    return []
                if rows.segments or rows.tail > _INLINE_ROWS:
                    return None
                return self._neighbors(txn, closest(rows.view(), query, limit=limit, now=self._clock()))
        finally:
            self._lock.release()

    def _search(self, key: bytes, query: Vector, limit: int) -> list[Neighbor]:
        with ExitStack() as held:
            with self._lock:
                # Begun under the lock: a younger index would hold numbers this transaction cannot see.
                txn = held.enter_context(self._reading())
                self._follow(txn)
                rows = self._namespaces.get(key)
                if rows is None:
                    return []
                now = self._clock()
                views, segments = rows.view(), rows.segments
                for segment in segments:
                    segment.expire(now)
            many = sum(len(view.numbers) for view in views) > _INLINE_ROWS
            found = (_closest_of_many if many and limit > 0 else closest)(views, query, limit=limit, now=now)
            for segment in segments:
                numbers = segment.closest(query, limit=limit, now=now)
                found += [(number, self._similarity(txn, number, query)) for number in numbers]
            found.sort(key=lambda each: (-each[1], each[0]))
            return self._neighbors(txn, found[:limit])

    def _similarity(self, txn: Reading, number: int, query: Vector) -> float:
        return max(-1.0, min(1.0, float(np.vecdot(self._log.entry(txn, number).vector, query))))

    def _neighbors(self, txn: Reading, found: Sequence[tuple[int, float]]) -> list[Neighbor]:
        neighbors = []
        for number, similarity in found:
            entry_id, payload = self._log.payload(txn, number)
            neighbors.append(Neighbor(entry_id, similarity, payload))
        return neighbors

    def _catch_up(self) -> None:
        with self._lock, self._reading() as txn:
            self._follow(txn)

    def _follow(self, txn: Reading) -> None:
        """Whatever interrupts it, the next call goes on from there: a removal may be applied twice."""
        if not self._begun or self._log.horizon(txn) > self._seen:
            self._begin(txn)
        for key, number in self._log.removals_after(txn, self._seen):
            rows = self._namespaces.get(key)
            if rows is not None:
                rows.remove(number)
                if rows.segments:
                    self._note(key)
                if not rows.live:
                    del self._namespaces[key]
        for entry in self._log.entries_after(txn, self._seen):
            self._add(entry)
            self._seen = entry.number
        self._seen = self._log.last(txn)

    def _add(self, entry: LoggedEntry) -> None:
        if self._closed:
            raise BackendError("the vector store is closed")
        rows = self._namespaces.get(entry.namespace)
        if rows is None:
            rows = self._namespaces[entry.namespace] = Rows()
        rows.add(entry.number, entry.vector, entry.expires_at)
        if rows.tail >= self._tail_limit(rows):
            self._note(entry.namespace)

    def _note(self, key: bytes) -> None:
        if key not in self._grown:
            self._grown.add(key)
            self._settled.clear()
            self._wake.set()

    def _begin(self, txn: Reading) -> None:
        """From nothing, or from the segments there are: whatever removals say is then found in the log's tables."""
        held = {key: list(rows.segments) for key, rows in self._namespaces.items()} if self._begun else self._read(txn)
        self._namespaces, self._seen, self._begun = {}, 0, False
        if any(held.values()):
            others = []
            for key, numbers in self._log.numbers(txn).items():
                segments, rest = _restored(held.get(key, []), numbers)
                if segments:
                    self._namespaces[key] = Rows(segments)
                others.append(rest)
            for number in np.sort(np.concatenate([*others, np.empty(0, dtype=np.int64)])).tolist():
                self._add(self._log.entry(txn, number))
            self._seen = self._log.last(txn)
        self._begun = True

    def _page(self, prefix: str, after: bytes) -> tuple[list[StoredVector], bytes | None]:
        with self._reading() as txn:
            return self._log.page(
                txn, prefix, after=after, now=self._clock(), at_most=_PAGE_ENTRIES, at_most_bytes=_PAGE_BYTES
            )

    def _entries(self) -> int:
        with self._reading() as txn:
            return self._log.size(txn)

    def _live(self) -> int:
        with self._reading() as txn:
            return self._log.live(txn, now=self._clock())

    @contextmanager
    def _reading(self) -> Iterator[Reading]:
        try:
            with self._environment.lmdb.begin(buffers=True) as txn:
                yield txn
        except lmdb.MapResizedError as error:
            raise BackendError(f"{self._directory} was opened elsewhere with a larger max_bytes: use one") from error
        except lmdb.Error as error:
            raise BackendError(f"the vector store cannot be read: {error}") from error

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        if self._closed:
            raise BackendError("the vector store is closed")
        return self._reader.submit(work)

    # Segments, in the indexer's thread but for the first reading.

    def _keep_indexed(self) -> None:
        while not self._closed:
            try:
                self._index()
            except Interrupted:
                break
            except (BackendError, snapshot.Unusable, OSError) as error:
                if not self._closed:
                    _logger.warning("an index of the vector store failed, and is made when more is written: %s", error)
            with self._lock:
                if not self._grown:
                    self._settled.set()
            self._wake.wait(_INDEX_SECONDS)
            self._wake.clear()
        self._settled.set()

    def _index(self) -> None:
        """Adopts what another process made; makes what is missing, if no other process is at it."""
        self._adopt_all()
        if not self._grown:
            return
        with alone(self._directory / "indexing") as is_alone:
            if is_alone:
                snapshot.remove_all_but(self._directory, self._adopt_all())
                while (work := self._next_work()) is not None:
                    self._make(work)
                    snapshot.remove_all_but(self._directory, self._adopt_all())

    def _next_work(self) -> "_Work | None":
        with self._lock, self._reading() as txn:
            self._follow(txn)
            while self._grown:
                key = self._grown.pop()
                rows = self._namespaces.get(key)
                first = None if rows is None else _first_to_replace(rows, self._tail_limit(rows))
                if rows is not None and first is not None:
                    return _work(key, rows, first, self._seen, self._log.identity(txn))
            return None

    def _make(self, work: "_Work") -> None:
        started = time.monotonic()
        onto, parts = work.onto, work.parts
        base = None if onto is None else (snapshot.copy_of_graph(self._directory, onto.title), onto)
        graph, tables = grow(parts, onto=base, dimensions=self.dimensions, go_on=lambda: not self._closed)
        snapshot.write(self._directory, work.title, graph, tables, identity=work.identity)
        self._refused.discard(work.title)
        seconds = time.monotonic() - started
        _logger.info("indexed %d vectors of a namespace in %.1f s", len(tables.numbers), seconds)

    def _adopt_all(self) -> set[Title]:
        """What may stay on disk."""
        found = snapshot.titles(self._directory)
        with self._lock:
            spaces = [self._namespaces.get(title.namespace) for title in found]
            held = {segment.title for rows in spaces if rows is not None for segment in rows.segments}
        self._refused.intersection_update(found)  # once it is gone, another may come under its name
        return {title for title in found if title in held or (title not in self._refused and self._adopt(title))}

    def _adopt(self, title: Title) -> bool:
        """False if it is of no use, now or ever."""
        with self._lock, self._reading() as txn:
            self._follow(txn)
            rows = self._namespaces.get(title.namespace)
            if rows is None or any(segment.title.exceeds(title) for segment in rows.segments):
                return False
            seen, identity = self._seen, self._log.identity(txn)
            alive = rows.alive(up_to=title.high)
        try:
            segment = snapshot.read(self._directory, title, identity=identity, dimensions=self.dimensions)
            if title.built > seen or not segment.has(alive[alive >= title.low]):
                raise snapshot.Unusable("it belongs to other entries")
        except snapshot.Unusable as error:
            self._refuse(title, error)
            return False
        segment.restore(alive)
        with self._lock, self._reading() as txn:
            self._follow(txn)
            if self._namespaces.get(title.namespace) is rows and self._log.horizon(txn) <= seen:
                for key, number in self._log.removals_after(txn, seen):
                    if key == title.namespace:
                        segment.remove(number)
                rows.adopt(segment)
                self._note(title.namespace)
        return True

    def _read(self, txn: Reading) -> dict[bytes, list[Segment]]:
        held: dict[bytes, list[Segment]] = {}
        last, identity = self._log.last(txn), self._log.identity(txn)
        for title in snapshot.titles(self._directory):
            try:
                if title.built > last:
                    raise snapshot.Unusable("it is younger than the entries")
                segment = snapshot.read(self._directory, title, identity=identity, dimensions=self.dimensions)
            except snapshot.Unusable as error:
                self._refuse(title, error)
            else:
                held.setdefault(title.namespace, []).append(segment)
        return held

    def _refuse(self, title: Title, reason: snapshot.Unusable) -> None:
        self._refused.add(title)
        _logger.warning("an index in %s is not used, and made again where it is missed: %s", self._directory, reason)

    def _tail_limit(self, rows: Rows) -> int:
        return max(1, self._exact_below // 4) if rows.segments else self._exact_below

    # In the writer's thread.

    def _clear(self, prefix: str, txn: Writing) -> tuple[int, bool]:
        return self._log.clear(txn, prefix, now=self._clock(), at_most=_UPKEEP_STEP)

    def _sweep(self, txn: Writing) -> int:
        return self._log.sweep(txn, now=self._clock(), at_most=_UPKEEP_STEP)

    def _relieve(self, txn: Writing) -> None:
        self._log.evict(txn, share=20, now=self._clock())

    def _upkeep(self) -> None:
        environment = self._environment.lmdb
        environment.reader_check()  # a killed reader would keep freed pages from being used again
        os.utime(self._directory)
        swept = _UPKEEP_STEP
        while swept == _UPKEEP_STEP:
            with environment.begin(write=True) as txn:
                swept = self._sweep(txn)
        with environment.begin(write=True) as txn:
            self._log.forget_removals(txn, before=self._clock() - _REMOVALS_KEPT_SECONDS)
        self._reader.submit(self._catch_up)  # also where nobody searches: memory shrinks, no removal is missed

    def _checked(self, vector: Vector) -> Vector:
        check_shape(vector, self.dimensions)
        return np.ascontiguousarray(vector, dtype=np.float32)


class _Work(NamedTuple):
    """A segment to be made: of a copy of `onto`, and of the parts."""

    title: Title
    identity: bytes
    onto: Segment | None
    parts: list[Part]


def _first_to_replace(rows: Rows, tail_limit: int) -> int | None:
    """The segment from which on all goes into a new one, None if all may stay."""
    segments = rows.segments
    worn = next((at for at, segment in enumerate(segments) if segment.worn), len(segments))
    if not rows.live or (rows.tail < tail_limit and worn == len(segments)):
        return None
    first = worn
    size = rows.tail + sum(segment.live for segment in segments[first:])
    while first and segments[first - 1].live < _SEGMENT_RATIO * size:
        first -= 1
        size += segments[first].live
    return first if size else None


def _work(key: bytes, rows: Rows, first: int, seen: int, identity: bytes) -> _Work:
    replaced, views = rows.segments[first:], rows.view()
    low = rows.segments[first - 1].title.high + 1 if first else 0
    high = int(views[-1].numbers[-1]) if views else replaced[-1].title.high
    extends = bool(replaced) and not replaced[0].worn
    parts = [segment.part() for segment in (replaced[1:] if extends else replaced)]
    parts += [_part(view) for view in views]
    return _Work(Title(key, low, high, seen), identity, replaced[0] if extends else None, parts)


def _part(view: View) -> Part:
    alive = np.flatnonzero(view.expires_at > -math.inf)
    return Part(view.numbers[alive], view.expires_at[alive], lambda some: view.vectors[alive[some]])


def _restored(segments: list[Segment], numbers: NDArray[np.int64]) -> tuple[list[Segment], NDArray[np.int64]]:
    """The segments up to the first that lacks one of the live `numbers`, and the numbers beyond."""
    kept = []
    for segment in segments:
        high = int(np.searchsorted(numbers, segment.title.high, side="right"))
        if not segment.has(numbers[:high]):
            break
        segment.restore(numbers[:high])
        kept.append(segment)
        numbers = numbers[high:]
    return kept, numbers


def _closest_of_many(views: Sequence[View], query: Vector, *, limit: int, now: float) -> list[tuple[int, float]]:
    """As `closest`, and as exact. FAISS keeps the best of each block as it goes and lets other threads run."""
    faiss = single_threaded()
    numbers, similarities = [], []
    for view in views:
        alive = view.expires_at > now
        bits = np.packbits(alive, bitorder="little")
        selector = None if alive.all() else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        count, dimensions = view.vectors.shape
        best = min(limit, count)
        cosines, rows = np.empty(best, dtype=np.float32), np.empty(best, dtype=np.int64)
        faiss.knn_inner_product(
            faiss.swig_ptr(query),
            faiss.swig_ptr(view.vectors),
            dimensions,
            1,
            count,
            best,
            faiss.swig_ptr(cosines),
            faiss.swig_ptr(rows),
            selector,
        )
        found = rows >= 0  # -1 where fewer were alive
        numbers.append(view.numbers[rows[found]])
        similarities.append(cosines[found])
    return ranked(np.concatenate(numbers), np.concatenate(similarities), limit=limit)


def _directory(path: Path, revision: str, dimensions: int) -> Path:
    """A name to read, and a hash that tells apart what reads the same."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", revision).strip("-")[:40]
    return path / f"{readable}-{dimensions}-{blake2b(f'{_LAYOUT} {revision}'.encode(), digest_size=4).hexdigest()}"


def _remove_unused(path: Path) -> None:
    for directory in path.iterdir():
        try:
            ours = re.search(r"-\d+-[0-9a-f]{8}$", directory.name) and (directory / "data.mdb").exists()
            if ours and time.time() - directory.stat().st_mtime > _UNUSED_SECONDS:
                _logger.info("removing %s: no gateway has used this embedder's vectors for a week", directory)
                shutil.rmtree(directory)
        except OSError as error:  # another process may be removing it too
            _logger.warning("%s could not be removed: %s", directory, error)
