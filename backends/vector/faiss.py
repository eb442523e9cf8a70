"""The embedded vector store: one machine's processes share it through LMDB, each searches its own memory."""

import asyncio
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import numpy as np

from backends.environment import open_environment
from backends.vector.base import Neighbor, Vector
from backends.vector.log import TABLES, Reading, VectorLog, Writing, key_of
from backends.vector.rows import Rows, View, closest, ranked
from backends.vector.writer import Writer
from models.errors import BackendError

_INLINE_ROWS = 20_000  # compared in 0.8 ms; more are compared in a thread
_INLINE_EVENTS = 64  # read in 0.3 ms
_ROOM = 0.85  # of the map: LMDB writes new pages before it frees the old ones
_MAX_WAITING = 64 << 20
_UPKEEP_SECONDS = 10.0
_UPKEEP_STEP = 1_000  # entries a transaction, so that writers get in between
_REMOVALS_KEPT_SECONDS = 600.0  # sixty times as long as a process takes to see them
_UNUSED_SECONDS = 7 * 24 * 3600.0
_SWEPT_WITH_A_WRITE = 4  # keeps up with any rate of writes without a long sweep
_LAYOUT = 1  # of the tables; another number begins another directory

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class FaissStore:
    """Entries outlive the process, also `kill -9`; a power cut may cost all of them, as it may any cache.

    Each revision of an embedder has its own directory below `path`, so that
    its vectors meet no others; one that no process has used for a week is
    removed when another is opened.

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
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Blocks while the file is checked; entries are read into memory in a thread. Raises `BackendError`."""
        self.dimensions = dimensions
        self._max_entries = max_entries
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
        if entries > _INLINE_ROWS:
            _faiss()  # better now than at the first search
        self._namespaces: dict[bytes, Rows] = {}
        self._seen = 0
        self._lock = threading.Lock()  # of the two above; the event loop tries it and never waits
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
        self._writer.close()
        self._reader.shutdown()
        with self._lock:
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
                    if last - self._seen > _INLINE_EVENTS or self._log.horizon(txn) > self._seen:
                        return None
                    self._follow(txn)
                rows = self._namespaces.get(key)
                if rows is None:
                    return []
                if rows.live > _INLINE_ROWS:
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
                views = [] if rows is None else rows.view()
            many = sum(len(view.numbers) for view in views) > _INLINE_ROWS
            search = _closest_of_many if many and limit > 0 else closest
            return self._neighbors(txn, search(views, query, limit=limit, now=self._clock()))

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
        if self._log.horizon(txn) > self._seen:
            self._namespaces = {}
            self._seen = 0
        for key, number in self._log.removals_after(txn, self._seen):
            rows = self._namespaces.get(key)
            if rows is not None:
                rows.remove(number)
                if not rows.live:
                    del self._namespaces[key]
        for entry in self._log.entries_after(txn, self._seen):
            if self._closed:
                raise BackendError("the vector store is closed")
            rows = self._namespaces.get(entry.namespace)
            if rows is None:
                rows = self._namespaces[entry.namespace] = Rows()
            rows.add(entry.number, entry.vector, entry.expires_at)
            self._seen = entry.number
        self._seen = self._log.last(txn)

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
        if vector.shape != (self.dimensions,):
            raise ValueError(f"expected a vector of {self.dimensions} dimensions, got shape {vector.shape}")
        return np.ascontiguousarray(vector, dtype=np.float32)


def _faiss() -> Any:
    """Imported where a namespace is large: 37 MB, and 0.09 s during which no other thread runs."""
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(1)  # the cores are the workers'
    return faiss


def _closest_of_many(views: Sequence[View], query: Vector, *, limit: int, now: float) -> list[tuple[int, float]]:
    """As `closest`, and as exact. FAISS keeps the best of each block as it goes and lets other threads run."""
    faiss = _faiss()
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
