"""One HTTP exchange over plain ASGI: the body in, bytes out, and word when the client goes away.

Inference routes stay clear of any framework: Starlette's routing alone costs
more than an exact hit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from models.errors import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
HeaderList = list[tuple[bytes, bytes]]

# A client that takes nothing for so long is gone, whatever its socket says.
_SEND_DEADLINE = 60.0


class ClientGone(Exception):
    """The client closed the connection, or stopped reading; there is nobody to answer."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, *, limit: int, timeout: float) -> bytes:
    """The whole body. Raises `RequestError` for one that is too large, late or compressed, `ClientGone` for one cut
    short."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise RequestError("send the body without Content-Encoding", param="Content-Encoding")
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(timeout):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body: bytes = message.get("body", b"")
                if len(body) > limit:
                    raise _too_large(limit)
                return body
            parts = bytearray()
            while message["type"] == "http.request":
                parts += message.get("body", b"")
                if len(parts) > limit:
                    raise _too_large(limit)
                if not message.get("more_body"):
                    return bytes(parts)
                message = await receive()
    except TimeoutError:
        raise RequestError(f"the body did not arrive within {timeout:g} s", code="request_timeout") from None
    raise ClientGone


async def send_whole(send: Send, status: int, headers: HeaderList, body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if len(body) < _UNHURRIED:
        await send({"type": "http.response.body", "body": body})
        return
    await send_part(send, body)
    await send_end(send)


# What the socket's own buffer takes without waiting.
_UNHURRIED = 64 * 1024


async def send_part(send: Send, body: bytes) -> None:
    """A piece of a body. Raises `ClientGone` when the client reads nothing for a minute."""
    try:
        async with asyncio.timeout(_SEND_DEADLINE):
            await send({"type": "http.response.body", "body": body, "more_body": True})
    except TimeoutError:
        raise ClientGone from None


async def send_end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b""})


class HangUp:
    """Turns a client's hang-up into `ClientGone` in the task that serves it.

    While it is entered, one task waits for the disconnect; the body must have
    been read before.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> None:
        serving = asyncio.current_task()
        assert serving is not None  # noqa: S101  # a coroutine that runs has a task

        def hung_up(watch: asyncio.Task[None]) -> None:
            if not watch.cancelled():
                self._gone = True
                serving.cancel()

        self._watch = asyncio.get_running_loop().create_task(self._until_gone())
        self._watch.add_done_callback(hung_up)
        self._hung_up = hung_up
        self._serving = serving

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watch.remove_done_callback(self._hung_up)
        self._watch.cancel()
        if self._gone:
            self._serving.uncancel()
            if kind is asyncio.CancelledError:
                raise ClientGone

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _too_large(limit: int) -> RequestError:
    return RequestError(f"the body is larger than server.max_body ({limit} bytes)", code="request_too_large")
