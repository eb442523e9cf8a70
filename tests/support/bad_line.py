"""A line to a server that can be slow, dead silent or cut, as a real process sees it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE = 64 * 1024


class BadLine:
    """Passes bytes between `port` and a server on loopback. What it is set to holds for connections that are there
    already, and for new ones."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.delay = 0.0  # seconds before each piece of a reply goes on
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._resumed = asyncio.Event()
        self._resumed.set()

    def hang(self) -> None:
        """Connections are taken, and nothing more is heard."""
        self._loop.call_soon_threadsafe(self._resumed.clear)

    def resume(self) -> None:
        self.delay = 0.0
        self._loop.call_soon_threadsafe(self._resumed.set)

    def cut(self) -> None:
        """Every connection that is there breaks; new ones are taken."""
        self._loop.call_soon_threadsafe(self._break_all)

    def _break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        self._break_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._resumed.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(back)
            await asyncio.gather(self._pass(reader, back, slow=False), self._pass(there, writer, slow=True))
        except OSError:
            writer.transport.abort()  # the server is down: so is the line
        finally:
            self._writers.discard(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await self._resumed.wait()
                if slow and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()
        self._writers.discard(writer)


@contextmanager
def bad_line(target: int) -> Iterator[BadLine]:
    """A line to the server at port `target`, in a thread of its own."""
    line = BadLine(target)
    ready, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=line._loop.run_until_complete, args=[line._serve(ready, stop)], daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield line
    finally:
        line._loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        line._loop.close()
