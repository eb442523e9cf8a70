"""One thread that commits to LMDB what many tasks write, many writes to a transaction."""

import asyncio
import errno
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import lmdb

from backends.vector.log import Writing
from models.errors import BackendError, StoreFull

_log = logging.getLogger(__name__)

_BATCH_WRITES = 256
_BATCH_BYTES = 16 << 20

# LMDB calls it EIO when the disk took a part of what it wrote.
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

Write = Callable[[Writing], Any]
T = TypeVar("T")


class Writer:
    """Accepts at most `max_waiting` bytes at a time.

    `upkeep` runs in the same thread every `upkeep_every` seconds and may
    raise `BackendError` or `lmdb.Error`, which are logged. `relieve` runs in a
    transaction of its own after one found the map full.
    """

    def __init__(
        self,
        environment: lmdb.Environment,
        *,
        relieve: Write,
        upkeep: Callable[[], None],
        upkeep_every: float,
        max_waiting: int,
    ) -> None:
        self._environment = environment
        self._relieve = relieve
        self._upkeep = upkeep
        self._upkeep_every = upkeep_every
        self._max_waiting = max_waiting
        self._waiting = 0
        self._closed = False
        self._lock = threading.Lock()  # of the three above; what enters the queue before `None` is written
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="vector-writer", daemon=True)
        self._thread.start()

    async def write(self, write: Callable[[Writing], T], *, size: int = 0) -> T:
        """Returns what `write` returned, once it is committed and every process can see it.

        `write` may run more than once, each time in a fresh transaction, and
        must not raise anything but `lmdb.Error`. Raises `StoreFull` or
        `BackendError`. If the caller is cancelled, it may or may not be done.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise BackendError("the vector store is closed")
            if self._waiting + size > self._max_waiting and self._waiting:
                raise StoreFull(f"{self._waiting >> 20} MB wait to be written to the vector store")
            self._waiting += size
            self._queue.put(_Queued(write, size, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Blocks until everything accepted before is written. Safe to repeat."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        upkeep_at = time.monotonic() + self._upkeep_every
        try:
            more = True
            while more:
                batch, more = self._next_batch(timeout=max(0.0, upkeep_at - time.monotonic()))
                self._commit([queued for queued in batch if queued.future.set_running_or_notify_cancel()])
                with self._lock:
                    self._waiting -= sum(queued.size for queued in batch)
                if time.monotonic() >= upkeep_at:
                    self._keep_up()
                    upkeep_at = time.monotonic() + self._upkeep_every
        finally:
            self._refuse_the_rest()

    def _next_batch(self, *, timeout: float) -> tuple[list["_Queued"], bool]:
        """What waits, up to a batch; False after the last one ever."""
        batch: list[_Queued] = []
        size = 0
        try:
            queued = self._queue.get(timeout=timeout)
            while queued is not None:
                batch.append(queued)
                size += queued.size
                if len(batch) == _BATCH_WRITES or size >= _BATCH_BYTES:
                    return batch, True
                queued = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _commit(self, batch: list["_Queued"]) -> None:
        if not batch:
            return
        try:
            results = self._in_one_transaction(batch)
        except lmdb.Error as error:
            if len(batch) > 1:  # one write too many, or too large, must not fail the others
                for queued in batch:
                    self._commit([queued])
                return
            batch[0].future.set_exception(_refusal(error))
        else:
            for queued, result in zip(batch, results, strict=True):
                queued.future.set_result(result)

    def _in_one_transaction(self, batch: list["_Queued"]) -> list[Any]:
        try:
            with self._environment.begin(write=True) as txn:
                return [queued.write(txn) for queued in batch]
        except lmdb.MapFullError:
            if len(batch) > 1:
                raise
            with self._environment.begin(write=True) as txn:
                self._relieve(txn)
            with self._environment.begin(write=True) as txn:
                return [queued.write(txn) for queued in batch]

    def _keep_up(self) -> None:
        try:
            self._upkeep()
        except (BackendError, lmdb.Error, OSError) as error:
            _log.warning("upkeep of the vector store failed and is tried again: %s", error)

    def _refuse_the_rest(self) -> None:
        """Whatever ended the thread, nobody waits for ever."""
        with self._lock:
            self._closed = True
        while True:
            try:
                queued = self._queue.get_nowait()
            except queue.Empty:
                return
            if queued is not None and queued.future.set_running_or_notify_cancel():
                queued.future.set_exception(BackendError("the vector store is closed"))


def _refusal(error: lmdb.Error) -> BackendError:
    full = isinstance(error, lmdb.MapFullError | lmdb.TxnFullError) or error.code in _DISK_FULL
    refusal = (StoreFull if full else BackendError)(f"the vector store cannot write: {error}")
    refusal.__cause__ = error
    return refusal


class _Queued(NamedTuple):
    write: Write
    size: int
    future: "Future[Any]"
