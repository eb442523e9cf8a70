"""Any upstream that speaks the OpenAI dialect over HTTP."""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from backends.upstream.base import Call, ChunkStream, Reply
from backends.upstream.sse import EventReader, EventTooLong
from backends.upstream.transport import Answer, Transport
from models.errors import ConfigError, UpstreamError
from models.request import Operation

Headers = tuple[tuple[str, str], ...]

DEFAULT_BASE_URLS = {"openai": "https://api.openai.com/v1"}

_PATHS: dict[Operation, str] = {"chat": "/chat/completions", "completion": "/completions", "embedding": "/embeddings"}
_REQUEST_IDS = frozenset({"x-request-id", "request-id", "anthropic-request-id", "apim-request-id"})
_RATE_LIMITS = ("x-ratelimit-", "ratelimit", "anthropic-ratelimit-")
_NOT_A_STREAM = ("text/html", "image/", "audio/", "video/", "multipart/")
_MAX_EVENT_BYTES = 1_000_000
_MAX_ERROR_BYTES = 65_536


class OpenAIUpstream:
    """Sends what the client sent, and takes care that it is all that was sent.

    Times are seconds, see `Transport`. With `auth: passthrough` the caller's
    `authorization` is sent as it is and `api_key` is not used; a 401 or 403 is
    then the caller's to mend, and passed on like any other 4xx. An answer of
    more than `max_answer_bytes` ends as an error. `headers` are added to every
    request.

    A stream request that is answered with one JSON reply, as some servers do
    with tools, becomes a stream of one chunk a choice, the finish and the usage.
    """

    capabilities: frozenset[Operation] = frozenset(_PATHS)

    def __init__(
        self,
        *,
        name: str,
        provider: str = "openai-compatible",
        base_url: str | None = None,
        api_key: str | None = None,
        auth: Literal["key", "passthrough"] = "key",
        connect_timeout: float = 5.0,
        read_timeout: float = 300.0,
        total_timeout: float = 600.0,
        max_answer_bytes: int = 64 * 2**20,
        proxy: str | None = None,
        ca_file: str | None = None,
        stream_usage: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.provider = provider
        base_url = base_url or DEFAULT_BASE_URLS.get(provider)
        if base_url is None:
            raise ConfigError(f"upstreams.{name}.base_url: is needed, for example http://127.0.0.1:11434/v1")
        self._passthrough = auth == "passthrough"
        self._max = max_answer_bytes
        self._stream_usage = stream_usage
        own = {} if api_key is None or self._passthrough else {"authorization": f"Bearer {api_key}"}
        given = {key.lower(): value for key, value in (headers or {}).items()}
        json = {"content-type": "application/json"}
        self._headers = {**json, "accept": "application/json", **given, **own}
        self._stream_headers = {**json, "accept": "text/event-stream", **given, **own}
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
        answer = await self._send(call, _body(call, _whole_changes(call)), self._headers)
        body = await answer.read(self._max)
        _check_whole(body, call.operation, self.name)
        return Reply(body=body, headers=_returned(answer.headers))

    async def stream(self, call: Call) -> ChunkStream:
        body = _body(call, _stream_changes(call, ask_for_usage=self._stream_usage))
        answer = await self._send(call, body, self._stream_headers)
        headers = _returned(answer.headers)
        if answer.media_type == "application/json":
            whole = await answer.read(self._max)
            _check_whole(whole, call.operation, self.name)
            return _Replayed(_as_chunks(whole, call.operation, self.name), headers)
        if answer.media_type.startswith(_NOT_A_STREAM):
            answer.abandon()
            raise UpstreamError(f"the upstream {self.name!r} answered with {answer.media_type} instead of a stream")
        return _Chunks(answer, headers, name=self.name, max_bytes=self._max)

    async def models(self) -> Sequence[str]:
        """Asks with the upstream's own key.

        With `auth: passthrough` there is none to ask with, and no caller whose
        credential could be used: the upstream is asked without, and most refuse
        that with a 401, which is raised.
        """
        answer = await self._transport.send("GET", "/models", self._headers, None)
        if not 200 <= answer.status < 300:
            raise await self._refusal(answer)
        body = await answer.read(self._max)
        try:
            return [model.id for model in msgspec.json.decode(body, type=_ModelList).data]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise UpstreamError(f"the upstream {self.name!r} answered with something that is no model list") from None

    async def close(self) -> None:
        await self._transport.close()

    async def _send(self, call: Call, body: bytes, base: dict[str, str]) -> Answer:
        headers = {**dict(call.headers), **base} if call.headers else base
        if self._passthrough and call.authorization is not None:
            headers = {**headers, "authorization": call.authorization}
        answer = await self._transport.send("POST", _PATHS[call.operation], headers, body)
        if not 200 <= answer.status < 300:
            raise await self._refusal(answer)
        return answer

    async def _refusal(self, answer: Answer) -> UpstreamError:
        """An answer that is not 2xx, as the error that callers see. Only a 4xx keeps the provider's words."""
        status = answer.status
        headers = _returned(answer.headers)
        retry_after = answer.headers.get("retry-after")
        message = f"the upstream {self.name!r} answered with status {status}"
        credentials = status in {401, 403}
        if not 400 <= status < 500 or (credentials and not self._passthrough):
            answer.abandon()
            if credentials:
                message = f"the upstream {self.name!r} refused its credentials; check api_key of that upstream"
            elif status < 400:
                message += "; check base_url"
            return UpstreamError(message, retry_after=retry_after, headers=headers)
        if credentials:
            message = f"the upstream {self.name!r} refused the credentials of the request"
        body = await _error_body(answer)
        return UpstreamError(message, status=status, body=body, retry_after=retry_after, headers=headers)


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    """As much of a chunk as tells where the stream stands; decoding it proves that the rest is JSON."""

    choices: list[_Choice] | None = None
    error: Any = None


class _Chunks:
    """The events of a running call as they arrive."""

    def __init__(self, answer: Answer, headers: Headers, *, name: str, max_bytes: int) -> None:
        self.headers = headers
        self._answer = answer
        self._name = name
        self._left = max_bytes
        self._events = EventReader(max_event_bytes=_MAX_EVENT_BYTES)
        self._ready: deque[bytes] = deque()
        self._open: set[int] = set()  # choices seen and not finished
        self._finished: set[int] = set()
        self._decoder = _CHUNK
        self._begun = False
        self._at_end = False
        self._done = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._done:
            raise StopAsyncIteration
        while not self._ready:
            if self._at_end:
                self._done = True
                if self._open or not self._finished:
                    raise UpstreamError(f"the stream of the upstream {self._name!r} ended early")
                raise StopAsyncIteration
            await self._fill()
        payload = self._ready.popleft()
        if payload == b"[DONE]":
            if not self._begun:
                raise self._broken("had nothing in it")
            self._done = True
            await self._answer.finish()
            raise StopAsyncIteration
        self._note(payload)
        self._begun = True
        return payload

    async def close(self) -> None:
        self._done = True
        self._ready.clear()
        self._answer.abandon()

    async def _fill(self) -> None:
        try:
            piece = await self._answer.next_piece()
            self._left -= len(piece)
            if self._left < 0:
                raise self._broken("was too long")
            if piece:
                self._ready.extend(self._events.feed(piece))
            else:
                self._at_end = True
                self._ready.extend(self._events.end())
        except EventTooLong:
            raise self._broken("had an event that was too long") from None
        except UpstreamError:
            self._done = True
            raise

    def _note(self, payload: bytes) -> None:
        try:
            chunk = self._decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # No cause: it may quote the payload.
            raise self._broken("had a chunk that is not the JSON it should be") from None
        if chunk.error is not None:
            raise self._broken("ended with an error")
        for choice in chunk.choices or ():
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
                self._open.discard(choice.index)
            elif choice.index not in self._finished:
                self._open.add(choice.index)

    def _broken(self, how: str) -> UpstreamError:
        self._done = True
        self._answer.abandon()
        return UpstreamError(f"the stream of the upstream {self._name!r} {how}")


class _Replayed:
    """A whole reply as the stream that was asked for."""

    def __init__(self, chunks: Iterable[bytes], headers: Headers) -> None:
        self.headers = headers
        self._chunks = deque(chunks)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.popleft()

    async def close(self) -> None:
        self._chunks.clear()


class _WholeChat(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw]
    error: Any = None


class _WholeEmbedding(msgspec.Struct, gc=False):
    data: list[msgspec.Raw]
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


_CHUNK = msgspec.json.Decoder(_Chunk)
_WHOLE: dict[Operation, msgspec.json.Decoder[_WholeChat] | msgspec.json.Decoder[_WholeEmbedding]] = {
    "chat": msgspec.json.Decoder(_WholeChat),
    "completion": msgspec.json.Decoder(_WholeChat),
    "embedding": msgspec.json.Decoder(_WholeEmbedding),
}


def _whole_changes(call: Call) -> dict[str, Any]:
    """What must differ from the client's body, by field; None takes a field out."""
    changes: dict[str, Any] = {}
    if call.body.get("model") != call.model:
        changes["model"] = call.model
    if call.body.get("stream"):
        changes["stream"] = changes["stream_options"] = None
    return changes


def _stream_changes(call: Call, *, ask_for_usage: bool) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if call.body.get("model") != call.model:
        changes["model"] = call.model
    if call.body.get("stream") is not True:
        changes["stream"] = True
    options = call.body.get("stream_options")
    if not ask_for_usage:
        if "stream_options" in call.body:
            changes["stream_options"] = None
    # Options of another type are the upstream's to refuse.
    elif options is None or isinstance(options, dict):
        options = options or {}
        if options.get("include_usage") is not True:
            changes["stream_options"] = {**options, "include_usage": True}
    return changes


def _body(call: Call, changes: dict[str, Any]) -> bytes:
    """The client's bytes where nothing changes and they can be read in one way only.

    With a key twice in an object, two readers may see two different requests.
    What was screened and hashed is the decoded one, so that is what is sent.
    """
    if not changes:
        encoded = msgspec.json.encode(call.body)
        return call.raw if call.raw is not None and _compact(call.raw) == encoded else encoded
    changed = {**call.body, **changes}
    return msgspec.json.encode(
        {key: value for key, value in changed.items() if key not in changes or value is not None}
    )


def _compact(raw: bytes) -> bytes:
    try:
        return msgspec.json.format(raw, indent=-1)
    except (msgspec.MsgspecError, RecursionError):
        return b""


def _check_whole(body: bytes, operation: Operation, name: str) -> None:
    try:
        if not body.isascii():
            body.decode()
        whole = _WHOLE[operation].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # No cause: it may quote the body.
        raise UpstreamError(f"the upstream {name!r} answered with something that is no {operation} reply") from None
    if whole.error is not None:
        raise UpstreamError(f"the upstream {name!r} answered with an error that it called a success")


def _as_chunks(body: bytes, operation: Operation, name: str) -> list[bytes]:
    whole = msgspec.json.decode(body)
    kind = "chat.completion.chunk" if operation == "chat" else "text_completion"
    head = {key: value for key, value in whole.items() if key not in {"choices", "usage"}} | {"object": kind}
    chunks: list[dict[str, Any]] = []
    for choice in whole["choices"]:
        if not isinstance(choice, dict) or not isinstance(choice.get("message", {}), dict):
            raise UpstreamError(f"the upstream {name!r} answered with something that is no {operation} reply")
        if operation == "chat":
            message = dict(choice.pop("message", {}))
            if message.get("tool_calls"):
                message["tool_calls"] = [{"index": i, **tool} for i, tool in enumerate(message["tool_calls"])]
            chunks.append({**head, "choices": [{**choice, "delta": message, "finish_reason": None}]})
            end = {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason")}
            chunks.append({**head, "choices": [end]})
        else:
            chunks.append({**head, "choices": [choice]})
    if whole.get("usage") is not None:
        chunks.append({**head, "choices": [], "usage": whole["usage"]})
    return [msgspec.json.encode(chunk) for chunk in chunks]


async def _error_body(answer: Answer) -> bytes | None:
    """None where it is no JSON object: the status says enough."""
    try:
        body = await answer.read(_MAX_ERROR_BYTES)
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        body.decode()
    except (UpstreamError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return body


def _returned(headers: Mapping[str, str]) -> Headers:
    """The provider's headers that callers get: its request id and its rate limits."""
    kept = []
    for key, value in headers.items():
        if key in _REQUEST_IDS:
            kept.append(("x-upstream-request-id", value))
        elif key.startswith(_RATE_LIMITS):
            kept.append((f"x-upstream-{key}", value))
    return tuple(kept)
