"""An embeddings API on loopback that a test can make slow, wrong or unwilling."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

DIMENSIONS = 48
WINDOW = 256


class EmbeddingsServer:
    """Gives each text a vector made from its hash, not of length 1.

    Refuses a call in which any text has more than 256 words, as OpenAI does.
    `status`, `answer` and `dimensions` change what it answers, `failing` limits
    that to so many calls, `retry_after` is said with it; clearing `open` keeps
    answers back until it is set. `hang_up` is how many calls end without an
    answer. `calls` holds the bodies received, `headers` those of the last call.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.status = 200
        self.answer: bytes | None = None
        self.failing: int | None = None
        self.retry_after = ""
        self.hang_up = 0
        self.dimensions = DIMENSIONS
        self.open = asyncio.Event()
        self.open.set()
        self.called = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = json.loads(await reader.readexactly(int(self.headers["content-length"])))
        self.calls.append(body)
        self.called.set()
        if not self.open.is_set() and not await self._opened(reader):
            self.hung_up.set()
            return False
        if self.hang_up:
            self.hang_up -= 1
            return False
        status, answer = self._answer(body)
        more = b"retry-after: %s\r\n" % self.retry_after.encode() if self.retry_after else b""
        location = b"location: /elsewhere\r\n" if status in (301, 302, 307) else b""
        writer.write(b"HTTP/1.1 %d Answer\r\n%s%scontent-type: application/json\r\n" % (status, location, more))
        writer.write(b"content-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        return True

    async def _opened(self, reader: asyncio.StreamReader) -> bool:
        """Whether answers were let through before the client hung up."""
        opened = asyncio.ensure_future(self.open.wait())
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait([opened, gone], return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        gone.cancel()
        return self.open.is_set()

    def _answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        if self.failing is not None:
            self.failing -= 1
            if self.failing < 0:
                self.status, self.answer, self.failing = 200, None, None
        if self.answer is not None or self.status != 200:
            return self.status, self.answer or b'{"error": {"message": "no: sk-secret said something private"}}'
        texts: list[str] = body["input"]
        if any(len(text.split()) > WINDOW for text in texts):
            return 400, b'{"error": {"message": "maximum context length is 256 tokens", "code": "invalid"}}'
        if "\u2620" in "".join(texts):
            return 400, b'{"error": {"message": "invalid input"}}'
        rows = [{"index": i, "embedding": vector(text, self.dimensions)} for i, text in enumerate(texts)]
        # Not in order: clients must go by `index`.
        return 200, json.dumps({"object": "list", "data": rows[::-1], "model": body["model"]}).encode()


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    return [byte - 127.5 for byte in hashlib.shake_256(text.encode()).digest(dimensions)]


@asynccontextmanager
async def embeddings_server() -> AsyncIterator[EmbeddingsServer]:
    server = EmbeddingsServer()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()
        running = list(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await listener.wait_closed()
