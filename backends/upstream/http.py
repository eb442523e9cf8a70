"""Any upstream that speaks one or more of the dialects over HTTP."""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from backends.upstream.base import Call, ChunkStream, Passage, Reply
from backends.upstream.sse import EventReader, EventTooLong
from backends.upstream.transport import Answer, Transport
from backends.upstream.wire import ChunkDecoder, Sent, Unreadable, Wire
from models.completion import Chunk
from models.errors import Untranslatable, UpstreamError
from models.request import Dialect, Operation

Headers = tuple[tuple[str, str], ...]
AuthStyle = Literal["bearer", "x-api-key", "x-goog-api-key", "api-key"]

_REQUEST_IDS = frozenset({"x-request-id", "request-id", "anthropic-request-id", "apim-request-id"})
_RATE_LIMITS = ("x-ratelimit-", "ratelimit", "anthropic-ratelimit-")
# Google calls a wrong key a bad request, and only in the details what it is.
_WRONG_KEY = b'"API_KEY_INVALID"'
_DESCRIBING = ("content-type", "content-disposition", "content-length")
_NOT_A_STREAM = ("text/html", "image/", "audio/", "video/", "multipart/")
# The last event of a Responses stream repeats the whole answer, images in base64 among it.
_MAX_EVENT_BYTES = 16 * 2**20
_MAX_ERROR_BYTES = 65_536


class HttpUpstream:
    """Sends what the client sent, and takes care that it is all that was sent.

    Of `wires`, best first, the one of the client's own dialect is used, else
    the first that serves the operation and has words for all of the request.
    `prefixes` come between the base URL and the paths of a dialect;
    `models_path` lists the models. `api_keys` are its credentials, sent as
    `auth_style` says; with `auth: passthrough` the caller's own is sent
    instead, and a 401 or 403 is then the caller's to mend, and passed on like
    any other 4xx. `headers` are added to every request, under those the client
    sent that carry meaning. An answer of more than `max_answer_bytes` ends as
    an error. Times are seconds, see `Transport`.

    A stream request that is answered with one JSON reply, as some servers do
    with tools, becomes a stream of one chunk a choice, the finish and the usage.
    """

    def __init__(
        self,
        *,
        name: str,
        provider: str,
        base_url: str,
        wires: Sequence[Wire],
        prefixes: Mapping[Dialect, str] | None = None,
        models_path: str = "/models",
        api_keys: Sequence[str] = (),
        auth: Literal["key", "passthrough"] = "key",
        auth_style: AuthStyle = "bearer",
        connect_timeout: float = 5.0,
        read_timeout: float = 300.0,
        total_timeout: float = 600.0,
        max_answer_bytes: int = 64 * 2**20,
        proxy: str | None = None,
        ca_file: str | None = None,
        defaults: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.provider = provider
        self.dialects: frozenset[Dialect] = frozenset(wire.dialect for wire in wires)
        self.capabilities: frozenset[Operation] = frozenset().union(*(wire.operations for wire in wires))
        self.keys = max(1, len(api_keys))
        # By operation and the client's dialect: what may be asked, in this order.
        self._ways: dict[tuple[Operation, Dialect], list[Wire]] = {
            (operation, dialect): sorted(
                [wire for wire in wires if operation in wire.operations], key=lambda wire: wire.dialect != dialect
            )
            for operation in self.capabilities
            for dialect in get_args(Dialect)
        }
        self._first: Dialect = wires[0].dialect
        self._prefixes = prefixes or {}
        self._models_path = models_path
        self._passthrough = auth == "passthrough"
        # Anthropic takes keys and tokens of subscriptions as bearers, and only keys as `x-api-key`: of a caller's
        # credential nobody knows which it is.
        self._passed_style: AuthStyle = "bearer" if auth_style == "x-api-key" else auth_style
        self._max = max_answer_bytes
        # What a provider needs to be told of, under what the client says.
        self._defaults = {key.lower(): value for key, value in (defaults or {}).items()}
        given = {key.lower(): value for key, value in (headers or {}).items()}
        keys = [] if self._passthrough else [_credential(auth_style, key) for key in api_keys]
        json = {"content-type": "application/json"}
        self._whole_headers = [{**json, "accept": "application/json", **given, **key} for key in keys or [{}]]
        self._stream_headers = [{**json, "accept": "text/event-stream", **given, **key} for key in keys or [{}]]
        self._transport = Transport(
            name=name,
            base_url=base_url,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            total_timeout=total_timeout,
            proxy=proxy,
            ca_file=ca_file,
        )

    async def complete(self, call: Call) -> Reply:
        answer, wire, dropped = await self._send(call, stream=False)
        return Reply(await self._whole(answer, wire, call), _returned(answer.headers), dropped)

    async def stream(self, call: Call) -> ChunkStream:
        answer, wire, dropped = await self._send(call, stream=True)
        headers = _returned(answer.headers)
        if answer.media_type == "application/json":
            whole = await self._whole(answer, wire, call)
            return _Replayed(_as_chunks(whole, call.operation, self.name), headers, dropped)
        if answer.media_type.startswith(_NOT_A_STREAM):
            answer.abandon()
            raise UpstreamError(
                f"the upstream {self.name!r} answered with {answer.media_type} instead of a stream",
                answered=answer.status,
            )
        return _Chunks(answer, wire.decoder(call), headers, dropped, name=self.name, max_bytes=self._max)

    async def forward(self, passage: Passage) -> "_Pieces":
        own = self._whole_headers[passage.key % self.keys]
        headers = {**self._defaults, **dict(passage.headers), **own, "accept": "*/*"}
        headers["content-type"] = passage.content_type
        if self._passthrough and passage.authorization is not None:
            headers |= _credential(self._passed_style, passage.authorization)
        if not passage.body:
            del headers["content-type"]
        dialect = passage.dialect if passage.dialect in self.dialects else self._first
        path = self._prefixes.get(dialect, "") + passage.path
        answer = await self._transport.send(passage.method, path, headers, passage.body, once=True)
        if not 200 <= answer.status < 300:
            raise await self._refusal(answer, dialect)
        return _Pieces(answer, self.name, self._max)

    async def models(self) -> Sequence[str]:
        """Asks with the upstream's own key.

        With `auth: passthrough` there is none to ask with, and no caller whose
        credential could be used: the upstream is asked without, and most refuse
        that with a 401, which is raised.
        """
        headers = {**self._defaults, **self._whole_headers[0]}
        answer = await self._transport.send("GET", self._models_path, headers, None)
        if not 200 <= answer.status < 300:
            raise await self._refusal(answer, self._first)
        body = await answer.read(self._max)
        try:
            listed = msgspec.json.decode(body, type=_ModelList | list[_Model])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise UpstreamError(f"the upstream {self.name!r} answered with something that is no model list") from None
        models = listed if isinstance(listed, list) else listed.data or listed.models
        return [model.id or model.name.removeprefix("models/") for model in models]

    async def close(self) -> None:
        await self._transport.close()

    def _request(self, call: Call, *, stream: bool) -> tuple[Wire, Sent]:
        refusals = []
        for wire in self._ways[call.operation, call.dialect]:
            try:
                return wire, wire.request(call, stream=stream)
            except RecursionError:
                raise Untranslatable(["a value nested too deeply"], dialect=wire.dialect) from None
            except Untranslatable as error:
                refusals.append(error)
        raise refusals[0]

    async def _whole(self, answer: Answer, wire: Wire, call: Call) -> bytes:
        body = await answer.read(self._max)
        try:
            return wire.whole(body, call)
        except Unreadable as error:
            # No cause: it may quote the body.
            raise UpstreamError(f"the upstream {self.name!r} {error}", answered=answer.status) from None

    async def _send(self, call: Call, *, stream: bool) -> tuple[Answer, Wire, tuple[str, ...]]:
        wire, sent = self._request(call, stream=stream)
        own = (self._stream_headers if stream else self._whole_headers)[call.key % self.keys]
        headers = {**self._defaults, **dict(call.headers), **own} if call.headers or self._defaults else own
        if self._passthrough and call.authorization is not None:
            headers = {**headers, **_credential(self._passed_style, call.authorization)}
        path = self._prefixes.get(wire.dialect, "") + sent.path
        answer = await self._transport.send("POST", path, headers, sent.body)
        if not 200 <= answer.status < 300:
            raise await self._refusal(answer, wire.dialect)
        return answer, wire, sent.dropped

    async def _refusal(self, answer: Answer, dialect: Dialect) -> UpstreamError:
        """An answer that is not 2xx, as the error that callers see. Only a 4xx keeps the provider's words."""
        status = answer.status
        headers = _returned(answer.headers)
        retry_after = _retry_after(answer.headers)
        message = f"the upstream {self.name!r} answered with status {status}"
        body = None
        if 400 <= status < 500 and (self._passthrough or status not in {401, 403}):
            body = await _error_body(answer)
            if dialect == "gemini" and not self._passthrough and _WRONG_KEY in (body or b""):
                status = 401
        else:
            answer.abandon()
        credentials = status in {401, 403}
        if not 400 <= status < 500 or (credentials and not self._passthrough):
            if credentials:
                message = f"the upstream {self.name!r} refused its credentials; check api_key of that upstream"
            elif status < 400:
                message += "; check base_url"
            return UpstreamError(message, retry_after=retry_after, headers=headers, answered=status)
        if credentials:
            message = f"the upstream {self.name!r} refused the credentials of the request"
        return UpstreamError(
            message, status=status, body=body, retry_after=retry_after, headers=headers, dialect=dialect
        )


class _Chunks:
    """The events of a running call as they arrive."""

    def __init__(
        self,
        answer: Answer,
        decoder: ChunkDecoder,
        headers: Headers,
        dropped: tuple[str, ...],
        *,
        name: str,
        max_bytes: int,
    ) -> None:
        self.headers = headers
        self.dropped = dropped
        self._answer = answer
        self._decoder = decoder
        self._name = name
        self._left = max_bytes
        self._reader = EventReader(max_event_bytes=_MAX_EVENT_BYTES)
        self._events: deque[bytes] = deque()
        self._ready: deque[Chunk] = deque()
        self._begun = False
        self._at_end = False
        self._done = False

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        while not self._ready:
            if self._done:
                raise StopAsyncIteration
            if self._decoder.finished:
                if not self._begun:
                    raise self._broken("had nothing in it")
                self._done = True
                await self._answer.finish()
            elif self._events:
                self._decode(self._events.popleft())
            elif self._at_end:
                self._done = True
                if not self._decoder.complete:
                    raise UpstreamError(f"the stream of the upstream {self._name!r} ended early")
            else:
                await self._fill()
        self._begun = True
        return self._ready.popleft()

    async def close(self) -> None:
        self._done = True
        self._events.clear()
        self._ready.clear()
        self._answer.abandon()

    async def _fill(self) -> None:
        try:
            piece = await self._answer.next_piece()
            self._left -= len(piece)
            if self._left < 0:
                raise self._broken("was too long")
            if piece:
                self._events.extend(self._reader.feed(piece))
            else:
                self._at_end = True
                self._events.extend(self._reader.end())
        except EventTooLong:
            raise self._broken("had an event that was too long") from None
        except UpstreamError:
            if self._decoder.complete:
                # Everything was said: only the farewell is missing, which some servers never send.
                self._at_end = True
                return
            self._done = True
            raise

    def _decode(self, event: bytes) -> None:
        try:
            self._ready.extend(self._decoder.feed(event))
        except Unreadable as error:
            # No cause: it may quote the event.
            raise self._broken(str(error)) from None

    def _broken(self, how: str) -> UpstreamError:
        self._done = True
        self._answer.abandon()
        return UpstreamError(f"the stream of the upstream {self._name!r} {how}")


class _Replayed:
    """A whole reply as the stream that was asked for."""

    def __init__(self, chunks: Iterable[Chunk], headers: Headers, dropped: tuple[str, ...]) -> None:
        self.headers = headers
        self.dropped = dropped
        self._chunks = deque(chunks)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.popleft()

    async def close(self) -> None:
        self._chunks.clear()


class _Pieces:
    """A body as it arrives, whatever it is."""

    def __init__(self, answer: Answer, name: str, max_bytes: int) -> None:
        self.status = answer.status
        kept = [(key, answer.headers[key]) for key in _DESCRIBING if key in answer.headers]
        self.headers = (*kept, *_returned(answer.headers))
        self._answer = answer
        self._name = name
        self._left = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._answer.next_piece():
            self._left -= len(piece)
            if self._left < 0:
                self._answer.abandon()
                raise UpstreamError(f"the answer of the upstream {self._name!r} was too long")
            yield piece

    async def close(self) -> None:
        self._answer.abandon()


class _Model(msgspec.Struct):
    id: str = ""
    name: str = ""


class _ModelList(msgspec.Struct):
    """`data` nearly everywhere, `models` at Gemini; Together has the list alone."""

    data: list[_Model] = []
    models: list[_Model] = []


def _credential(style: AuthStyle, key: str) -> dict[str, str]:
    """`key` may be a whole `Authorization` value, as a client sent it."""
    bare = key[len("bearer ") :] if key[: len("bearer ")].lower() == "bearer " else key
    return {"authorization": f"Bearer {bare}"} if style == "bearer" else {style: bare}


def _as_chunks(body: bytes, operation: Operation, name: str) -> list[Chunk]:
    try:
        return [Chunk(msgspec.json.encode(chunk), chunk) for chunk in _pieces_of(msgspec.json.decode(body), operation)]
    except (msgspec.MsgspecError, RecursionError, AttributeError, TypeError, LookupError, ValueError):
        # No cause: it may quote the body.
        raise UpstreamError(f"the upstream {name!r} answered with something that is no {operation} reply") from None


def _pieces_of(whole: dict[str, Any], operation: Operation) -> Iterator[dict[str, Any]]:
    kind = "chat.completion.chunk" if operation == "chat" else "text_completion"
    head = {key: value for key, value in whole.items() if key not in {"choices", "usage"}} | {"object": kind}
    for choice in whole["choices"]:
        if operation == "chat":
            message = dict(choice.pop("message", {}))
            if message.get("tool_calls"):
                message["tool_calls"] = [{"index": i, **tool} for i, tool in enumerate(message["tool_calls"])]
            yield {**head, "choices": [{**choice, "delta": message, "finish_reason": None}]}
            end = {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason")}
            yield {**head, "choices": [end]}
        else:
            yield {**head, "choices": [dict(choice)]}
    if whole.get("usage") is not None:
        yield {**head, "choices": [], "usage": whole["usage"]}


async def _error_body(answer: Answer) -> bytes | None:
    """None where it is no JSON object, or list of them: the status says enough."""
    try:
        body = await answer.read(_MAX_ERROR_BYTES)
        msgspec.json.decode(body, type=dict[str, msgspec.Raw] | list[dict[str, msgspec.Raw]])
        body.decode()
    except (UpstreamError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return body


def _retry_after(headers: Mapping[str, str]) -> str | None:
    """Unchanged where there is one; the header of Azure's and OpenAI's that counts milliseconds stands in for it."""
    seconds, milliseconds = headers.get("retry-after"), headers.get("retry-after-ms", "")
    if seconds is None and milliseconds.isdecimal() and len(milliseconds) < 10:
        return str(-(-int(milliseconds) // 1000))
    return seconds


def _returned(headers: Mapping[str, str]) -> Headers:
    """The provider's headers that callers get: its request id and its rate limits."""
    kept = []
    for key, value in headers.items():
        if key in _REQUEST_IDS:
            kept.append(("x-upstream-request-id", value))
        elif key.startswith(_RATE_LIMITS):
            kept.append((f"x-upstream-{key}", value))
    return tuple(kept)
