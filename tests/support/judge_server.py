"""A chat API on loopback that judges two questions as a test tells it to: late, wrong, obedient or not at all."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any


class JudgeServer:
    """Says what `says` makes of the user's message.

    `status`, `answer` and `finish_reason` change how; clearing `open` keeps
    answers back until it is set, or for good. `calls` are the bodies received.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.says: Callable[[str], str] = lambda _: "ONE_ANSWER"
        self.status = 200
        self.answer: bytes | None = None
        self.finish_reason = "stop"
        self.open = asyncio.Event()
        self.open.set()
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
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in head if line.startswith("content-length:"))
        body = json.loads(await reader.readexactly(length))
        self.calls.append(body)
        if not self.open.is_set():
            opened, gone = asyncio.ensure_future(self.open.wait()), asyncio.ensure_future(reader.read(1))
            await asyncio.wait([opened, gone], return_when=asyncio.FIRST_COMPLETED)
            opened.cancel()
            gone.cancel()
            if not self.open.is_set():
                self.hung_up.set()
                return False
        answer = self.answer if self.answer is not None else self._chat(body)
        writer.write(b"HTTP/1.1 %d Answer\r\ncontent-type: application/json\r\n" % self.status)
        writer.write(b"content-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        return True

    def _chat(self, body: dict[str, Any]) -> bytes:
        said = self.says(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return json.dumps(
            {
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [choice], "usage": usage,
            }
        ).encode()  # fmt: skip


@asynccontextmanager
async def judge_server() -> AsyncIterator[JudgeServer]:
    server = JudgeServer()
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
