"""The protocol of an upstream."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from models.request import Operation


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request to one upstream.

    `body` has the OpenAI shape; the adapter sets `model` in it, and on a
    stream asks for usage. `raw` are the bytes that `body` was decoded from,
    forwarded as they are where nothing needs to change. `headers` passed the
    header policy; credentials are the adapter's own, or in `authorization`
    for an upstream with `auth: passthrough`.
    """

    operation: Operation
    model: str
    body: Mapping[str, Any]
    raw: bytes | None
    headers: tuple[tuple[str, str], ...] = ()
    authorization: str | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole 2xx answer: JSON bytes of the OpenAI shape and the headers to pass on."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class ChunkStream(Protocol):
    """A streamed answer that has begun.

    Iterating gives the JSON payload of each chunk as it arrives, ends after
    the upstream's own end mark, and raises `UpstreamError` when the stream
    breaks before it. `close` cancels the call upstream; safe to repeat.
    """

    headers: tuple[tuple[str, str], ...]

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def close(self) -> None: ...


class Upstream(Protocol):
    """Everything a provider can do to a call ends as an answer or an `UpstreamError`. Cancelling cancels the call."""

    name: str
    provider: str
    capabilities: frozenset[Operation]

    async def complete(self, call: Call) -> Reply: ...

    async def stream(self, call: Call) -> ChunkStream:
        """Returns when the upstream's 2xx headers are here; errors before that are raised from here."""

    async def models(self) -> Sequence[str]:
        """Model names it serves; may be empty."""

    async def close(self) -> None: ...
