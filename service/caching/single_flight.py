"""One upstream call for all who ask the same at the same time.

A flight is a task of its own: nobody's hang-up or slowness is another's. It
keeps every chunk, so that who joins late gets the stream from its start.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from typing import Literal, NamedTuple

from models.completion import Entry
from models.errors import GatewayError, UpstreamError

log = logging.getLogger("keepgate.gateway")

_GIVING_UP = 1.0  # seconds for what was cancelled to let go of what it holds


class FlightChunk(NamedTuple):
    """`usage_only`: it carries nothing but usage, which a client may not have asked for. `event_only`: nothing but an
    event of the upstream's own dialect."""

    payload: bytes
    usage_only: bool = False
    event_only: bool = False


class Flight:
    """What an upstream call came to so far. The task that flies it writes; any number of requests read."""

    def __init__(self, *, streamed: bool) -> None:
        self.streamed = streamed  # chunks will come; else the answer comes whole
        self.chunks: list[FlightChunk] = []
        self.entry: Entry | None = None  # the answer once it is whole, from the upstream or from a cache
        self.error: GatewayError | None = None
        # Where a cache had the answer. `coalesced`: another process had been asked the same, and was waited for.
        self.hit: Literal["", "exact", "semantic", "coalesced"] = ""
        self.detail = ""
        self.similarity: float | None = None  # of the hit, or of the nearest rejected entry
        self.shadow: float | None = None
        self.upstream = ""
        self.upstream_model = ""
        self.headers: tuple[tuple[str, str], ...] = ()
        self.dropped: tuple[str, ...] = ()  # names of the request's fields that the upstream was not sent
        self.acted: tuple[str, ...] = ()  # what guardrails did so far
        self.issued: dict[str, str] = {}  # the values behind the placeholders in its chunks and its entry
        self.waited = 0.0  # seconds until the upstream's first chunk or whole reply
        self.in_pieces = False  # its chunks do not add up to a whole answer: they can be read, and nothing else
        self.ended = False
        self._readers = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.task: asyncio.Task[None] | None = None

    def start(self, fly: Coroutine[None, None, None], landed: Callable[[], None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            # However it ended, nobody may wait for ever.
            if task.cancelled():
                self.fail(UpstreamError("the gateway stopped before the answer was whole"))
            elif (cause := task.exception()) is not None:
                log.error("a request failed in a way nobody thought of", exc_info=cause)
                self.fail(GatewayError("the gateway failed; its log has the cause"))
            landed()

        self.task = asyncio.get_running_loop().create_task(fly)
        self.task.add_done_callback(done)

    @property
    def broke(self) -> bool:
        """It had begun to tell an answer, and failed."""
        return self.error is not None and bool(self.chunks)

    # --- the flying side

    def push(self, chunk: FlightChunk) -> None:
        self.chunks.append(chunk)
        self._wake()

    def finish(self, entry: Entry) -> None:
        self.entry = entry
        self.ended = True
        self._wake()

    def fail(self, error: GatewayError) -> None:
        if not self.ended:
            self.error = error
            self.ended = True
            self._wake()

    # --- the reading side

    def join(self) -> None:
        self._readers += 1

    def leave(self) -> bool:
        """True if nobody is left and the call was cancelled."""
        self._readers -= 1
        if self._readers > 0 or self.ended or self.task is None:
            return False
        # At once, so that nobody joins what is being given up.
        self.fail(UpstreamError("the request was given up before its answer was whole"))
        self.task.cancel()
        return True

    async def whole(self) -> Entry:
        """The finished answer. Raises the error the flight ended with."""
        while not self.ended:
            await self._changed()
        return self._answer()

    async def opened(self) -> None:
        """Returns when there is something to send. Raises if it failed before that."""
        while not self.ended and not self.chunks:
            await self._changed()
        if self.error is not None and not self.chunks:
            raise self.error

    async def read(self) -> AsyncIterator[list[FlightChunk]]:
        """Every chunk from the first, in batches of all that is there. Raises the error it ends with."""
        at = 0
        while True:
            if at < len(self.chunks):
                batch = self.chunks[at:]
                at += len(batch)
                yield batch
            elif self.ended:
                self._answer()
                return
            else:
                await self._changed()

    def _answer(self) -> Entry:
        if self.error is not None:
            raise self.error
        assert self.entry is not None  # noqa: S101  # ended without an error: finish() set it
        return self.entry

    async def _changed(self) -> None:
        # One future a reader: cancelling a reader must not cancel what another waits on.
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def _nobody_asked() -> None: ...


class Flights:
    """The flights that can be joined, by what makes two requests the same.

    A flight stays here after its answer is whole until the entry can be seen
    in the store, so that nobody falls between the two.
    """

    def __init__(self) -> None:
        self._open: dict[Hashable, Flight] = {}
        self._running: set[Flight] = set()

    def joinable(self, key: Hashable) -> Flight | None:
        flight = self._open.get(key)
        return None if flight is None or flight.error is not None else flight

    def start(
        self,
        key: Hashable | None,
        flight: Flight,
        fly: Coroutine[None, None, None],
        landed: Callable[[], None] = _nobody_asked,
    ) -> None:
        """`key` None: a flight nobody joins. `landed` is called when its task has ended, however it did."""
        if key is not None:
            self._open[key] = flight
        self._running.add(flight)

        def has_landed() -> None:
            self._landed(key, flight)
            landed()

        flight.start(fly, has_landed)

    def close(self, key: Hashable | None, flight: Flight) -> None:
        """Nobody joins it any more."""
        if key is not None and self._open.get(key) is flight:
            del self._open[key]

    def _landed(self, key: Hashable | None, flight: Flight) -> None:
        self.close(key, flight)
        self._running.discard(flight)

    async def landed(self, deadline: float) -> None:
        """Waits until none is under way, at most `deadline` seconds: entries being written are kept. What is left then,
        such as an audit, is given up, so that nothing is asked of what is closed next."""
        tasks = [flight.task for flight in self._running if flight.task is not None]
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=deadline)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_GIVING_UP)
