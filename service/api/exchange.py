"""One HTTP exchange over plain ASGI: the body in, bytes out, and word when the client goes away.

Inference routes stay clear of any framework: Starlette's routing alone costs
more than an exact hit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from models.errors import RequestError
from service.api import at_once

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
HeaderList = list[tuple[bytes, bytes]]

# A client that takes nothing for so long is gone, whatever its socket says.
_SEND_DEADLINE = 60.0
_CLOSED = "the handler is closed"


class ClientGone(Exception):
    """The client closed the connection, or stopped reading; there is nobody to answer."""


def header_map(fields: HeaderList) -> dict[bytes, bytes]:
    """By name, in lower case as ASGI gives them; repeated fields are one list (RFC 9110, section 5.3)."""
    headers = dict(fields)
    if len(headers) == len(fields):
        return headers
    headers.clear()
    for name, value in fields:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, *, limit: int, timeout: float) -> bytes:
    """The whole body. Raises `RequestError` for one that is too large, late or compressed, `ClientGone` for one cut
    short."""
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError("send the body without Content-Encoding", param="Content-Encoding")
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = at_once.received(receive)
    if body is not None:
        if len(body) > limit:
            raise _too_large(limit)
        return body
    try:
        with Deadline(timeout):
            message = await receive()
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


async def send_whole(send: Send, status: int, headers: HeaderList, body: bytes, *, close: bool = False) -> None:
    """An answer that is all there, and the connection's last one if `close`. Raises `ClientGone` when the client
    reads nothing for a minute."""
    headers.append((b"content-length", b"%d" % len(body)))
    try:
        if len(body) < _UNHURRIED and not close and at_once.sent(send, status, headers, body):
            return
    except RuntimeError as error:
        raise _gone_or(error) from None
    if close:
        headers.append((b"connection", b"close"))
    start = {"type": "http.response.start", "status": status, "headers": headers}
    if len(body) < _UNHURRIED:
        await _send_in_time(send, start, {"type": "http.response.body", "body": body})
        return
    await _send_in_time(send, start)
    await send_part(send, body)
    await send_end(send)


# What the socket's own buffer takes without waiting.
_UNHURRIED = 64 * 1024


async def send_start(send: Send, status: int, headers: HeaderList) -> None:
    """The status and headers of a stream. Raises `ClientGone` as `send_part` does: answers to earlier requests of the
    same connection may still wait before it."""
    await _send_in_time(send, {"type": "http.response.start", "status": status, "headers": headers})


async def send_part(send: Send, body: bytes) -> None:
    """A piece of a body. Raises `ClientGone` when the client reads nothing for a minute."""
    await _send_in_time(send, {"type": "http.response.body", "body": body, "more_body": True})


async def send_end(send: Send) -> None:
    """Raises `ClientGone` as well: the end waits until the pieces before it are taken."""
    await _send_in_time(send, {"type": "http.response.body", "body": b""})


async def _send_in_time(send: Send, *messages: Message) -> None:
    try:
        with Deadline(_SEND_DEADLINE):
            for message in messages:
                await send(message)
    except TimeoutError:
        raise ClientGone from None
    except RuntimeError as error:
        raise _gone_or(error) from None


def _gone_or(error: RuntimeError) -> Exception:
    # uvloop has no class of its own for a socket that was closed before the protocol came to know.
    return ClientGone() if _CLOSED in str(error) else error


class Deadline:
    """`asyncio.timeout` at a third of its cost, which every request pays: raises `TimeoutError` after `seconds`."""

    __slots__ = ("_expired", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine that runs has a task
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        # Another's cancellation that came at the same moment goes before ours.
        if self._expired and self._task.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise TimeoutError

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


# Most answers are back sooner than this, and need no task to watch over them.
_WATCH_AFTER = 0.02


class HangUp:
    """Turns a client's hang-up into `ClientGone` in the task that serves it.

    From a moment after it is entered, one task waits for the disconnect; the
    body must have been read before.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        serving = asyncio.current_task()
        assert serving is not None  # noqa: S101  # a coroutine that runs has a task
        self._serving = serving
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_WATCH_AFTER, self._begin)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.remove_done_callback(self._ended)
            self._watch.cancel()
        if self._gone:
            self._serving.uncancel()
            if kind is asyncio.CancelledError:
                raise ClientGone

    def _begin(self) -> None:
        self._watch = self._loop.create_task(self._until_gone())
        self._watch.add_done_callback(self._ended)

    def _ended(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled():
            self._gone = True
            self._serving.cancel()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _too_large(limit: int) -> RequestError:
    return RequestError(f"the body is larger than server.max_body ({limit} bytes)", code="request_too_large")
