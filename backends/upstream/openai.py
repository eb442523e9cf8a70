"""The OpenAI dialect towards a provider: chat completions, completions and embeddings.

https://platform.openai.com/docs/api-reference
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from backends.upstream.base import Call
from backends.upstream.openai_request import NO_QUIRKS, Quirks, corrections, translated
from backends.upstream.wire import Sent, Unreadable, as_written
from models.completion import Chunk
from models.request import Dialect, Operation

_PATHS: dict[Operation, str] = {"chat": "/chat/completions", "completion": "/completions", "embedding": "/embeddings"}


class OpenAIWire:
    """What a client of this dialect wrote is changed only where the provider would refuse it, or not hear it.

    `stream_usage`: it is asked for usage on streams.
    """

    dialect: Dialect = "openai"
    operations: frozenset[Operation] = frozenset(_PATHS)

    def __init__(
        self,
        *,
        stream_usage: bool = True,
        quirks: Quirks = NO_QUIRKS,
        operations: frozenset[Operation] = frozenset(_PATHS),
    ) -> None:
        self.operations = operations
        self._stream_usage = stream_usage
        self._quirks = quirks

    def request(self, call: Call, *, stream: bool) -> Sent:
        path = _PATHS[call.operation]
        if call.dialect == self.dialect:
            changes = self._stream_changes(call) if stream else _whole_changes(call)
            return Sent(path, _changed(call, changes | corrections(call.body, self._quirks)))
        body = translated(call, self._quirks)
        if stream:
            body["stream"] = True
            if self._stream_usage:
                body["stream_options"] = {"include_usage": True}
        return Sent(path, msgspec.json.encode(body), call.dropped)

    def whole(self, body: bytes, call: Call) -> bytes:
        try:
            if not body.isascii():
                body.decode()
            whole = _WHOLE[call.operation].decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Unreadable(f"answered with something that is no {call.operation} reply") from None
        if whole.error is not None:
            raise Unreadable("answered with an error that it called a success")
        if call.dialect != self.dialect and call.operation == "chat":
            return _with_plain_content(body)
        return body

    def decoder(self, call: Call) -> "_Decoder":
        return _Decoder(as_it_comes=call.dialect == self.dialect or call.operation != "chat")

    def _stream_changes(self, call: Call) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if call.body.get("model") != call.model:
            changes["model"] = call.model
        if call.body.get("stream") is not True:
            changes["stream"] = True
        options = call.body.get("stream_options")
        if not self._stream_usage:
            if "stream_options" in call.body:
                changes["stream_options"] = None
        # Options of another type are the upstream's to refuse.
        elif options is None or isinstance(options, dict):
            options = options or {}
            if options.get("include_usage") is not True:
                changes["stream_options"] = {**options, "include_usage": True}
        return changes


class _Decoder:
    """Chunks come as they are, or with their content as text; what else is read of them is where the stream stands."""

    def __init__(self, *, as_it_comes: bool) -> None:
        self.finished = False
        self._as_it_comes = as_it_comes
        self._open: set[int] = set()  # choices seen and not finished
        self._ended: set[int] = set()

    @property
    def complete(self) -> bool:
        """Some servers forget the end mark."""
        return bool(self._ended) and not self._open

    def feed(self, data: bytes) -> Sequence[Chunk]:
        if data == b"[DONE]":
            self.finished = True
            return ()
        try:
            chunk = msgspec.json.decode(data)
            if chunk.get("error") is not None:
                raise Unreadable("ended with an error")
            for index, reason in _finishes(chunk.get("choices")):
                if reason is not None:
                    self._ended.add(index)
                    self._open.discard(index)
                elif index not in self._ended:
                    self._open.add(index)
            if not self._as_it_comes and _plain(chunk, "delta"):
                data = msgspec.json.encode(chunk)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError, TypeError):
            # No cause: it may quote the chunk.
            raise Unreadable("had a chunk that is not the JSON it should be") from None
        return (Chunk(data, chunk),)


def _finishes(choices: Any) -> Iterator[tuple[int, str | None]]:
    """Index and finish reason of each choice. TypeError or AttributeError for what is none."""
    for choice in choices or ():
        index, reason = choice.get("index", 0), choice.get("finish_reason")
        if type(index) is not int or not isinstance(reason, str | None):
            raise TypeError
        yield index, reason


def _with_plain_content(body: bytes) -> bytes:
    try:
        whole = msgspec.json.decode(body)
        return msgspec.json.encode(whole) if _plain(whole, "message") else body
    except (msgspec.MsgspecError, RecursionError, AttributeError, TypeError):
        # No cause: it may quote the body.
        raise Unreadable("answered with something that is no chat reply") from None


def _plain(answer: dict[str, Any], said: str) -> bool:
    """Makes a content in parts, as Mistral's models that reason write it, text and `reasoning_content`; whether there
    was one. TypeError or AttributeError for what is no answer."""
    found = False
    for choice in answer.get("choices") or ():
        message = choice.get(said)
        if isinstance(message, dict) and isinstance(parts := message.get("content"), list):
            message["content"] = "".join(_texts(parts))
            if thought := "".join(text for part in parts for text in _texts(part.get("thinking") or ())):
                message["reasoning_content"] = thought
            found = True
    return found


def _texts(parts: Any) -> Iterator[str]:
    return (part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str))


class _WholeChat(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw]
    error: Any = None


class _WholeEmbedding(msgspec.Struct, gc=False):
    data: list[msgspec.Raw]
    error: Any = None


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


def _changed(call: Call, changes: dict[str, Any]) -> bytes:
    if not changes:
        return as_written(call.raw, call.body)
    changed = {**call.body, **changes}
    return msgspec.json.encode(
        {key: value for key, value in changed.items() if key not in changes or value is not None}
    )
