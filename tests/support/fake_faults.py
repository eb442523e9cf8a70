"""What can go wrong on the way from a provider: which call meets it, and how it looks on the wire."""

import asyncio
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from email.utils import formatdate
from typing import Any, Literal

import msgspec

from tests.support.fake_vendor import SSE, Json, Reply, Vendor

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Outcome = Literal["in flight", "answered", "broken", "left"]

WORDS = frozenset({
    "ok", "html", "empty", "malformed", "reset", "reset_midway", "cut", "unfinished", "stall", "stall_midway", "slow",
    "drip", "error_first", "error_midway", "endless",
})  # fmt: skip
_MIDWAY = frozenset({"reset_midway", "cut", "unfinished", "stall_midway", "error_midway", "endless", "malformed"})
_PAGE = b"<!doctype html><html><title>502 Bad Gateway</title><h1>Bad Gateway</h1></html>"
DRIP_BYTES = 7


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names are listed in `fake_provider.py`. `times` None is for ever; the rest narrows down which calls meet it."""

    name: str
    times: int | None = 1
    retry_after: str | None = None
    seconds: float | None = None
    message: str = "the fake was told to fail"
    credential: str | None = None
    model: str | None = None
    path: str = ""

    def __post_init__(self) -> None:
        if self.name not in WORDS and not (self.name.isdecimal() and 400 <= int(self.name) < 600):
            raise ValueError(f"no fault is named {self.name!r}; known: a status from 400, {', '.join(sorted(WORDS))}")


class Call(msgspec.Struct):
    """One call. `at` is monotonic, `took` in seconds. `outcome`: `answered` to the end, `broken` by a fault, or the
    caller `left` before the end. `fault` is the name of the one it met."""

    number: int
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    raw: bytes
    credential: str | None
    at: float
    took: float | None = None
    fault: str = ""
    status: int | None = None
    outcome: Outcome = "in flight"

    def end(self, outcome: Outcome) -> None:
        """The first outcome stands."""
        if self.took is None:
            self.outcome, self.took = outcome, time.monotonic() - self.at

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.raw)

    @property
    def model(self) -> str | None:
        """From the body, or from a path such as `/models/NAME:generateContent`."""
        _, _, named = self.path.partition("/models/")
        if named:
            return named.partition(":")[0]
        try:
            body = self.body
        except msgspec.DecodeError:
            return None
        model = body.get("model") if isinstance(body, dict) else None
        return model if isinstance(model, str) else None

    def report(self) -> Json:
        known = msgspec.structs.asdict(self)
        return {**known, "raw": self.raw.decode("utf-8", "replace"), "model": self.model}


class Weather:
    """Which fault a call meets: the first of the script that is meant for it, else one by chance."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.script: list[Fault] = []
        self.rate = 0.0
        self.faults: Sequence[Fault] = ()
        self.random = random.Random(0)  # noqa: S311 - faults that come back with the seed
        self.latency = 0.0
        self.chunk_delay = 0.0

    def due(self, call: Call) -> Fault | None:
        for place, fault in enumerate(self.script):
            if _meant(fault, call):
                if fault.times is not None:
                    left = msgspec.structs.replace(fault, times=fault.times - 1)
                    self.script[place : place + 1] = [left] if fault.times > 1 else []
                return None if fault.name == "ok" else fault
        if self.faults and self.random.random() < self.rate:
            return self.random.choice(self.faults)
        return None


def _meant(fault: Fault, call: Call) -> bool:
    return (
        (fault.credential is None or fault.credential == call.credential)
        and (fault.model is None or fault.model == call.model)
        and call.path.endswith(fault.path)
    )


class _Left(Exception):
    """The caller closed the connection."""


class Line:
    """The connection of one call whose body was read. `ended` hears of the end just before the caller can see it."""

    def __init__(
        self, transport: asyncio.Transport, receive: Receive, send: Send, ended: Callable[[Outcome], None]
    ) -> None:
        self._transport = transport
        self._send = send
        self._ended = ended
        self._gone = asyncio.ensure_future(receive())  # nothing but a disconnect can come now

    async def head(self, status: int, media_type: str, headers: Mapping[str, str], *, length: int | None) -> None:
        named = {"content-type": media_type, **headers}
        if length is not None:
            named["content-length"] = str(length)
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def piece(self, body: bytes) -> None:
        if self._gone.done():
            raise _Left
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def last(self, body: bytes, outcome: Outcome = "answered") -> None:
        if self._gone.done():
            raise _Left
        self._ended(outcome)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def wait(self, seconds: float | None) -> None:
        """For ever if None. Raises `_Left` when the caller leaves meanwhile."""
        await asyncio.wait({self._gone}, timeout=seconds)
        if self._gone.done():
            raise _Left

    async def close(self) -> None:
        """What was sent arrives, and then nothing more."""
        self._ended("broken")
        self._transport.close()
        await asyncio.wait({self._gone})

    async def reset(self) -> None:
        """The caller sees ECONNRESET, not an orderly end."""
        self._ended("broken")
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()
        await asyncio.wait({self._gone})

    def left(self) -> None:
        self._ended("left")

    def done(self) -> None:
        self._gone.cancel()


async def deliver(call: Call, reply: Reply, fault: Fault | None, weather: Weather, vendor: Vendor, line: Line) -> None:
    """Sends `reply`, or what the fault makes of it, to the end or until the caller leaves."""
    try:
        await _deliver(call, reply, fault, weather, vendor, line)
    except _Left:
        line.left()
    finally:
        line.done()


async def _deliver(call: Call, reply: Reply, fault: Fault | None, weather: Weather, vendor: Vendor, line: Line) -> None:
    name = fault.name if fault else "ok"
    if weather.latency:
        await line.wait(weather.latency)
    if fault and name == "stall":
        await line.wait(fault.seconds)
    elif fault and name == "slow":
        await line.wait(0.5 if fault.seconds is None else fault.seconds)
    elif name == "reset":
        await line.reset()
        return
    reply = _instead(reply, fault, vendor)
    call.status = reply.status
    if fault and name in _MIDWAY:
        await _half(reply, fault, weather, line)
        return
    pieces, delay = reply.pieces, weather.chunk_delay
    if fault and name == "drip":
        joined = b"".join(pieces)
        pieces = [joined[start : start + DRIP_BYTES] for start in range(0, len(joined), DRIP_BYTES)]
        delay = 0.01 if fault.seconds is None else fault.seconds
    length = None if reply.streamed else sum(map(len, pieces))
    await line.head(reply.status, reply.media_type, reply.headers, length=length)
    *before, last = pieces
    for piece in before:
        await line.piece(piece)
        if delay:
            await line.wait(delay)
    await line.last(last)


def _instead(reply: Reply, fault: Fault | None, vendor: Vendor) -> Reply:
    """The reply that the fault puts in the place of the true one."""
    if fault is None:
        return reply
    if fault.name.isdecimal():
        failure = vendor.failure(int(fault.name), fault.message)
        failure.headers = {**failure.headers, **_retry_after(fault.retry_after)}
        return failure
    if fault.name == "html":
        return Reply([_PAGE], status=502, media_type="text/html")
    if fault.name == "empty":
        return Reply([b""], media_type=reply.media_type)
    if fault.name == "error_first" and reply.streamed:
        return msgspec.structs.replace(reply, pieces=[reply.error_event])
    if fault.name in {"error_first", "error_midway"} and not reply.streamed:
        return vendor.failure(503, fault.message)
    return reply


async def _half(reply: Reply, fault: Fault, weather: Weather, line: Line) -> None:
    """Half of the reply, and then what the fault says."""
    whole = b"".join(reply.pieces)
    pieces = list(reply.pieces) if reply.streamed else [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    # A stream has begun: its first event is among those that are sent.
    middle = max(1, len(pieces) // 2)
    promised = len(whole) if not reply.streamed and fault.name in {"reset_midway", "cut", "stall_midway"} else None
    await line.head(reply.status, reply.media_type, reply.headers, length=promised)
    for piece in pieces[:middle]:
        await line.piece(piece)
        if weather.chunk_delay:
            await line.wait(weather.chunk_delay)
    if fault.name == "endless":
        filler = pieces[middle - 1] if reply.media_type == SSE else b" "
        while True:
            await line.piece(filler)
            await line.wait(0.01 if fault.seconds is None else fault.seconds)
    if fault.name == "stall_midway":
        await line.wait(fault.seconds)
        await line.last(b"".join(pieces[middle:]))
    elif fault.name == "reset_midway":
        await line.wait(0.05)  # what is sent together with a reset may never be seen
        await line.reset()
    elif fault.name == "cut":
        await line.close()
    elif fault.name == "error_midway":
        await line.last(reply.error_event, "broken")
    elif fault.name == "malformed" and reply.streamed:
        event = pieces[middle] if middle < len(pieces) else pieces[0]
        await line.last(event[: len(event) // 2].rstrip() + b"\n\n", "broken")
    else:
        await line.last(b"", "broken")


def _retry_after(told: str | None) -> dict[str, str]:
    if told is None:
        return {}
    kind, _, number = told.rpartition(":")
    if kind == "ms":
        return {"retry-after-ms": number}
    if kind == "date":
        return {"retry-after": formatdate(time.time() + float(number), usegmt=True)}
    return {"retry-after": told}
