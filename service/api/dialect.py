"""What differs between the dialects that clients speak: a request in, an answer, a stream or an error out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from models.completion import Completion
from models.errors import GatewayError
from models.request import Dialect as DialectName
from models.request import Operation, Request


class Asked(NamedTuple):
    """What the path of a request says; None where the dialect says it in the body."""

    operation: Operation
    model: str | None = None
    stream: bool | None = None
    query: str = ""


class StreamEncoder(Protocol):
    """Writes one streamed answer. Nothing is kept after `end` or `error`."""

    media_type: bytes

    def chunks(self, payloads: Sequence[bytes]) -> bytes:
        """The bytes to send for these canonical chunks, usage-only ones among them; may be empty."""

    def end(self, completion: Completion) -> bytes:
        """The dialect's terminal events. `completion` is the whole answer, for usage that no chunk had."""

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The dialect's error event: the stream ends after it."""


class Dialect(msgspec.Struct, frozen=True):
    """`usage_first`: a stream opens with what was read, so a replay tells the usage before anything else.

    `decode` raises `RequestError` that says which field cannot be used; `whole` is the body of a 200; `error` that
    of any other status, where a provider's own 4xx of the same dialect keeps its body."""

    name: DialectName
    decode: Callable[[bytes, Asked], Request]
    whole: Callable[[Completion, Request], bytes]
    stream: Callable[[Request], StreamEncoder]
    error: Callable[[GatewayError, str], bytes]
    usage_first: bool = False
