"""Work on texts, shared: who asks for the same text at the same time waits for the same embedding."""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import BackendError, TextRefused

Vector = NDArray[np.float32]


# What a vector in memory costs beside its numbers: the array, its key and its place in the order.
_BESIDE = 384


@dataclass(slots=True)
class _Job:
    future: asyncio.Future[Vector]
    waiters: int = 0


class Memory:
    """The vectors of the texts used last: at most `texts` of them, and `size` bytes."""

    def __init__(self, *, texts: int, size: int) -> None:
        self._texts = texts
        self._size = size
        self._held = 0
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()

    def recall(self, key: bytes) -> Vector | None:
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def keep(self, key: bytes, vector: Vector) -> None:
        if _cost(vector) > self._size:
            return
        before = self._vectors.pop(key, None)
        self._vectors[key] = vector
        self._held += _cost(vector) - (0 if before is None else _cost(before))
        while len(self._vectors) > self._texts or self._held > self._size:
            self._held -= _cost(self._vectors.popitem(last=False)[1])

    def clear(self) -> None:
        self._vectors.clear()
        self._held = 0

    def __len__(self) -> int:
        return len(self._vectors)


class SharedEmbeddings:
    """Begins each text once, however many ask for it, and stops what nobody waits for any more.

    `begin` starts the work on one text; cancelling the future it returns
    stops or skips that work. At most `waiting` texts are under way, and what
    was made is kept in `memory` (by hash: no text stays there), under a `tag`
    where others share it. For one event loop.
    """

    def __init__(
        self,
        begin: Callable[[str], asyncio.Future[Vector]],
        *,
        waiting: int,
        memory: Memory | None = None,
        tag: str = "",
    ) -> None:
        self._begin = begin
        self._waiting = waiting
        self._memory = memory
        self._tag = tag.encode()
        self._jobs: dict[bytes, _Job] = {}

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector a text, in order. Raises the first error there is; `BackendError` at once if too many wait."""
        keys = [_key(text, self._tag) for text in texts]
        found: dict[bytes, Vector] = {}
        joined: dict[bytes, _Job] = {}
        try:
            for key, text in zip(keys, texts, strict=True):
                if key in found or key in joined:
                    continue
                if self._memory is not None and (vector := self._memory.recall(key)) is not None:
                    found[key] = vector
                else:
                    joined[key] = self._join(key, text)
            if joined:
                # Unlike gather, wait leaves the futures alone when this caller is cancelled: others may share them.
                await asyncio.wait([job.future for job in joined.values()], return_when=asyncio.FIRST_EXCEPTION)
            for key, job in joined.items():
                if job.future.done():
                    found[key] = _outcome(job.future)
        finally:
            for key, job in joined.items():
                self._leave(key, job)
        return [found[key] for key in keys]

    def _join(self, key: bytes, text: str) -> _Job:
        job = self._jobs.get(key)
        if job is None:
            if len(self._jobs) >= self._waiting:
                raise BackendError(f"{self._waiting} texts wait for their embedding already")
            job = self._jobs[key] = _Job(self._begin(text))
            job.future.add_done_callback(lambda future: self._finish(key, future))
        job.waiters += 1
        return job

    def _leave(self, key: bytes, job: _Job) -> None:
        job.waiters -= 1
        if job.waiters == 0 and not job.future.done():
            # Forgotten now, not when the cancelled future gets round to it: who asks next must not join it.
            del self._jobs[key]
            job.future.cancel()

    def _finish(self, key: bytes, future: asyncio.Future[Vector]) -> None:
        job = self._jobs.get(key)
        if job is not None and job.future is future:
            del self._jobs[key]
        # Asking for the exception also marks it as seen, should every waiter have left in the meantime.
        if future.cancelled() or future.exception() is not None:
            return
        if self._memory is not None:
            self._memory.keep(key, future.result())


class OneThread:
    """Runs `work` on one text after the other, first come first served, beside the event loop."""

    def __init__(self, work: Callable[[str], Vector], *, name: str) -> None:
        self._work = work
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    def begin(self, text: str) -> asyncio.Future[Vector]:
        try:
            return asyncio.wrap_future(self._executor.submit(self._work, text))
        except RuntimeError as error:
            raise BackendError("the embedder is closed") from error

    async def run(self, call: Callable[[], None]) -> None:
        """Runs `call` in the same thread, after what was begun before it."""
        try:
            await asyncio.wrap_future(self._executor.submit(call))
        except RuntimeError as error:
            raise BackendError("the embedder is closed") from error

    async def close(self) -> None:
        """Who still waits gets a `BackendError`; a run under way is waited for."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)


class Batches:
    """Sends the texts that wait together, at most `size` a call and `calls` calls at a time.

    A text that makes the far side refuse a whole call must not fail the
    others in it: they are sent again one by one.
    """

    def __init__(self, send: Callable[[list[str]], Awaitable[list[Vector]]], *, size: int, calls: int) -> None:
        self._send = send
        self._size = size
        self._calls = calls
        self._queue: deque[tuple[str, asyncio.Future[Vector]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def begin(self, text: str) -> asyncio.Future[Vector]:
        if self._closed:
            raise BackendError("the embedder is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Vector] = loop.create_future()
        self._queue.append((text, future))
        loop.call_soon(self._start)  # not at once: the rest of this call's texts can still come along
        return future

    async def close(self) -> None:
        self._closed = True
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    def _start(self) -> None:
        while self._queue and len(self._running) < self._calls:
            batch: list[tuple[str, asyncio.Future[Vector]]] = []
            while self._queue and len(batch) < self._size:
                text, future = self._queue.popleft()
                if not future.done():
                    batch.append((text, future))
            if batch:
                self._run(batch)

    def _run(self, batch: list[tuple[str, asyncio.Future[Vector]]]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(batch))
        self._running.add(task)

        def stop_if_deserted(_done: asyncio.Future[Vector]) -> None:
            if all(future.cancelled() for _, future in batch):
                task.cancel()

        def ended(_done: asyncio.Task[None]) -> None:
            self._running.discard(task)
            for _, unanswered in batch:
                unanswered.cancel()  # no effect on those that got their answer
            self._start()

        for _, future in batch:
            future.add_done_callback(stop_if_deserted)
        task.add_done_callback(ended)

    async def _answer(self, batch: list[tuple[str, asyncio.Future[Vector]]]) -> None:
        try:
            vectors = await self._send([text for text, _ in batch])
        except TextRefused as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            for item in batch:
                if not item[1].done():
                    await self._answer([item])
        except BackendError as error:
            _fail(batch, error)
        else:
            for (_, future), vector in zip(batch, vectors, strict=True):
                if not future.done():
                    future.set_result(vector)


def _fail(batch: Sequence[tuple[str, asyncio.Future[Vector]]], error: BackendError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)


def _outcome(future: asyncio.Future[Vector]) -> Vector:
    if future.cancelled():
        # Not a CancelledError: that would tell the caller that it was cancelled itself.
        raise BackendError("the embedder was closed")
    return future.result()


def _cost(vector: Vector) -> int:
    return vector.nbytes + _BESIDE


def _key(text: str, tag: bytes) -> bytes:
    try:
        return hashlib.blake2b(text.encode(), digest_size=16, person=tag).digest()
    except UnicodeEncodeError as error:
        raise TextRefused("the text holds a lone surrogate: it is no Unicode text") from error


def unit(vector: NDArray[np.floating]) -> Vector:
    """The float32 vector of length 1 in that direction. Raises `BackendError` if there is none."""
    wide = vector.astype(np.float64)
    length = float(np.sqrt(wide @ wide))
    if not (0.0 < length < float("inf")):
        raise BackendError("the embedding has no direction: its length is zero or not a number")
    return (wide / length).astype(np.float32)
