"""The protocol of an upstream."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from models.completion import Chunk
from models.request import Dialect, Operation


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request to one upstream.

    `body` is canonical, `native` what the client wrote where its `dialect` is
    another than `openai`. An upstream that speaks the client's dialect is sent
    what the client wrote, and any other the translation of `body`; the adapter
    sets the model, and on a stream asks for usage. `raw` are the bytes as they
    came, forwarded where nothing needs to change. `refused` and `dropped` name
    what `body` lacks of `native`, as in `models.request.Request`. `headers`
    passed the header policy; credentials are the adapter's own, or in
    `authorization` for an upstream with `auth: passthrough`. `key` is the
    position among the upstream's own credentials of the one to use.
    """

    operation: Operation
    model: str
    body: Mapping[str, Any]
    raw: bytes | None
    headers: tuple[tuple[str, str], ...] = ()
    authorization: str | None = None
    dialect: Dialect = "openai"
    native: Mapping[str, Any] | None = None
    refused: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    key: int = 0


class Passage(msgspec.Struct, frozen=True, gc=False):
    """A request that is passed on as it is: `path` comes after where the API of that `dialect` begins and holds the
    query, `headers` passed the header policy. It is sent once at most."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    content_type: str = "application/json"
    authorization: str | None = None
    dialect: Dialect = "openai"
    key: int = 0


class Passed(Protocol):
    """The 2xx answer to it, as it arrives. Iterating raises `UpstreamError` when it breaks off."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def close(self) -> None: ...


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole 2xx answer: canonical JSON, the headers to pass on, and the names of fields that were not."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()


class ChunkStream(Protocol):
    """A streamed answer that has begun.

    Iterating gives each chunk as it arrives, ends after the upstream's own end
    mark, and raises `UpstreamError` when the stream breaks before it. `close`
    cancels the call upstream; safe to repeat.
    """

    headers: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def close(self) -> None: ...


class Upstream(Protocol):
    """Everything a provider can do to a call ends as an answer or an `UpstreamError`, and a call that its dialect has
    no words for as `Untranslatable`, before anything is sent. Cancelling cancels the call.

    `keys` is how many credentials of its own it has, at least one (which may
    be none at all); `dialects` are those it speaks.
    """

    name: str
    provider: str
    capabilities: frozenset[Operation]
    dialects: frozenset[Dialect]
    keys: int

    async def complete(self, call: Call) -> Reply: ...

    async def stream(self, call: Call) -> ChunkStream:
        """Returns when the upstream's 2xx headers are here; errors before that are raised from here."""

    async def forward(self, passage: Passage) -> Passed:
        """For what has no canonical form: audio, images, files."""

    async def models(self) -> Sequence[str]:
        """Model names it serves; may be empty."""

    async def close(self) -> None: ...
