"""What a fake of a vendor's API consists of: pure functions from what was asked to what is answered."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

Json = dict[str, Any]

KEY = "key-1"
JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"


class Asked(msgspec.Struct, frozen=True):
    """A call as it came. Names of headers are in lower case; of a query parameter that came twice, the last counts."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def bearer(self) -> str | None:
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind.lower() == "bearer" and token else None


class Reply(msgspec.Struct):
    """A whole answer is one piece; of a stream, every event is one. `error_event` is how this stream would say that it
    failed midway."""

    pieces: Sequence[bytes]
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    error_event: bytes = b""

    @property
    def streamed(self) -> bool:
        return bool(self.error_event)


class Refused(Exception):
    """The vendor would not take it. `args[0]` is the answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class Vendor(Protocol):
    """One dialect. `version` is the last part of the base URL, such as `/v1`."""

    name: str
    version: str

    def credential(self, asked: Asked) -> str | None: ...

    def answer(self, asked: Asked) -> Reply:
        """Raises `Refused`."""

    def failure(self, status: int, message: str) -> Reply:
        """An error of that status in the vendor's words."""


def good(credential: str | None) -> bool:
    return credential is not None and credential.startswith("key-")


def whole(body: Any, **more: Any) -> Reply:
    return Reply([msgspec.json.encode(body)], **more)


def event(payload: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(payload) + b"\n\n"
