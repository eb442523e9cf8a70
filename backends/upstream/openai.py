"""The OpenAI dialect towards a provider: chat completions, completions and embeddings.

https://platform.openai.com/docs/api-reference
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from backends.upstream.base import Call
from backends.upstream.wire import Sent, Unreadable, as_written
from models.completion import Chunk
from models.errors import Untranslatable
from models.request import Dialect, Operation

_PATHS: dict[Operation, str] = {"chat": "/chat/completions", "completion": "/completions", "embedding": "/embeddings"}
# Of an assistant's message, what only other dialects, or servers that said it, can read.
_FOREIGN = frozenset({"reasoning_details", "provider_content", "layout"})
# Tokens that may go into reasoning, up to which an effort stands for them. The API has no word for a number of them.
_EFFORTS: Final = ((0, "none"), (1024, "minimal"), (4096, "low"), (16384, "medium"))


class OpenAIWire:
    """What a client of this dialect wrote is changed only where the provider would refuse it, or not hear it.

    `renamed` are fields a provider knows under another name, `roles` those of
    messages that it calls otherwise. `accepted` are fields it takes beyond the
    OpenAI API (`top_k`, and `reasoning_content` in messages); they matter only
    to what came in another dialect, and so do names of a message's fields in
    `renamed`. `call_id_length`: ids of tool calls have exactly so many letters
    and digits. `stream_usage`: it is asked for usage on streams.
    """

    dialect: Dialect = "openai"
    operations: frozenset[Operation] = frozenset(_PATHS)

    def __init__(
        self,
        *,
        stream_usage: bool = True,
        renamed: Mapping[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
        accepted: Sequence[str] = (),
        call_id_length: int | None = None,
        operations: frozenset[Operation] = frozenset(_PATHS),
    ) -> None:
        self.operations = operations
        self._stream_usage = stream_usage
        self._renamed = renamed or {}
        self._roles = roles or {}
        self._accepted = frozenset(accepted)
        self._call_id_length = call_id_length

    def request(self, call: Call, *, stream: bool) -> Sent:
        path = _PATHS[call.operation]
        if call.dialect == self.dialect:
            changes = self._stream_changes(call) if stream else _whole_changes(call)
            return Sent(path, _changed(call, changes | self._corrections(call.body)))
        body = self._translated(call)
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

    def _corrections(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What of a client's own body the provider would refuse or not hear, by field, as it calls it."""
        changes: dict[str, Any] = {}
        for name, other in self._renamed.items():
            if name in body:
                changes[name] = None
                if body[name] is not None:
                    changes[other] = body[name]
        messages = body.get("messages")
        if (self._roles or self._call_id_length) and isinstance(messages, list):
            corrected = [self._corrected(message) for message in messages]
            if any(new is not old for new, old in zip(corrected, messages, strict=True)):
                changes["messages"] = corrected
        return changes

    def _corrected(self, message: Any) -> Any:
        """The message itself where nothing in it needs to change, or where it is none: the provider says what it is."""
        if not isinstance(message, dict):
            return message
        changes: dict[str, Any] = {}
        role = message.get("role")
        if isinstance(role, str) and role in self._roles:
            changes["role"] = self._roles[role]
        if self._call_id_length:
            calls = message.get("tool_calls")
            if not self._fits(message.get("tool_call_id")):
                changes["tool_call_id"] = self._short(message["tool_call_id"])
            if isinstance(calls, list) and not all(self._fits(_id_of(call)) for call in calls):
                changes["tool_calls"] = [
                    call if self._fits(_id_of(call)) else {**call, "id": self._short(call["id"])} for call in calls
                ]
        return {**message, **changes} if changes else message

    def _fits(self, call_id: Any) -> bool:
        """Also of what is no id."""
        return not isinstance(call_id, str) or (
            len(call_id) == self._call_id_length and call_id.isascii() and call_id.isalnum()
        )

    def _short(self, call_id: str) -> str:
        """The same for the call and its result, and nothing the model or the client ever compares."""
        return blake2b(call_id.encode("utf-8", "surrogatepass")).hexdigest()[: self._call_id_length]

    def _translated(self, call: Call) -> dict[str, Any]:
        """The canonical body without what is not of the OpenAI API. Raises `Untranslatable`."""
        refused = list(call.refused)
        body = dict(call.body)
        body.pop("stream", None)
        body.pop("stream_options", None)
        body["model"] = call.model
        if "top_k" in body and "top_k" not in self._accepted:
            refused.append("top_k")
        budget = body.pop("reasoning_budget", None)
        if budget is not None and "reasoning_effort" not in body and budget >= 0:
            body["reasoning_effort"] = next((effort for most, effort in _EFFORTS if budget <= most), "high")
        body["messages"] = [
            self._translated_message(message, f"messages[{at}]", refused)
            for at, message in enumerate(body.get("messages", ()))
        ]
        for name, other in self._renamed.items():
            if name in body:
                body[other] = body.pop(name)
        if refused:
            raise Untranslatable(list(dict.fromkeys(refused)), dialect=self.dialect)
        return body

    def _translated_message(self, message: dict[str, Any], path: str, refused: list[str]) -> dict[str, Any]:
        # Read by the dialect that wrote it, above: what is left here has no words in this one.
        if message.get("provider_content") and not any(name.startswith(path) for name in refused):
            refused.append(f"{path} (content of another dialect)")
        foreign = _FOREIGN | ({"is_error"} if message["role"] == "tool" else {"reasoning_content"} - self._accepted)
        kept = {self._renamed.get(name, name): value for name, value in message.items() if name not in foreign}
        content = kept.get("content")
        if isinstance(content, list):
            for part in content:
                file = part.get("file") if part.get("type") == "file" else None
                if isinstance(file, dict) and "file_url" in file:
                    refused.append(f"{path}.content (a document by its address)")
                if message["role"] == "tool" and part.get("type") != "text":
                    refused.append(f"{path}.content (a tool result that is not text)")
        corrected: dict[str, Any] = self._corrected(kept)
        return corrected


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


def _id_of(call: Any) -> Any:
    return call.get("id") if isinstance(call, dict) else None


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
