"""What differs between the dialects that providers speak: a call as HTTP, and an answer in the canonical form.

A wire is data and pure functions: connections, credentials, deadlines and
what a status means are `http.py`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from backends.upstream.base import Call
from models.completion import Chunk
from models.request import Dialect, Operation


class Unreadable(ValueError):
    """An answer that is none. The message ends the sentence "the stream (or answer) of the upstream …"; it never
    quotes the answer."""


class Sent(NamedTuple):
    """`path` comes after the base URL, whose last part is the API's version. `dropped` names fields nobody knows."""

    path: str
    body: bytes
    dropped: tuple[str, ...] = ()


class ChunkDecoder(Protocol):
    """Reads one streamed answer."""

    @property
    def finished(self) -> bool:
        """The dialect's own end mark came: nothing after it is read."""

    @property
    def complete(self) -> bool:
        """A stream that ends here, without an end mark, is whole."""

    def feed(self, data: bytes) -> Sequence[Chunk]:
        """What the `data` of one server-sent event comes to: no, one or several chunks. Raises `Unreadable`."""


class Wire(Protocol):
    """One dialect."""

    dialect: Dialect
    operations: frozenset[Operation]

    def request(self, call: Call, *, stream: bool) -> Sent:
        """A call that came in this dialect travels as it is but for the model and what makes it stream; any other is
        translated. Raises `Untranslatable`."""

    def whole(self, body: bytes, call: Call) -> bytes:
        """A 2xx reply as the JSON of a whole canonical answer. Raises `Unreadable`."""

    def decoder(self, call: Call) -> ChunkDecoder: ...


def as_written(raw: bytes | None, decoded: Mapping[str, Any]) -> bytes:
    """The client's bytes where they can be read in one way only, else what was read.

    With a key twice in an object, two readers may see two different requests.
    What was screened and hashed is the decoded one, so that is what is sent.
    """
    encoded = msgspec.json.encode(decoded)
    return raw if raw is not None and _compact(raw) == encoded else encoded


def _compact(raw: bytes) -> bytes:
    try:
        return msgspec.json.format(raw, indent=-1)
    except (msgspec.MsgspecError, RecursionError):
        return b""
