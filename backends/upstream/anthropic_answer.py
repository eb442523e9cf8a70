"""An answer of Anthropic's Messages API, whole or as events, in the canonical form.

https://platform.claude.com/docs/en/api/messages and
https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from backends.upstream.anthropic_request import CITATIONS, REASONING_FORMAT
from backends.upstream.wire import Unreadable
from models.completion import Chunk

Fields = dict[str, Any]

_FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "refusal": "content_filter",
}
# Those that `finish_reason` says as well.
_SAID_ALREADY = frozenset({"end_turn", "tool_use", "max_tokens"})
_READ_OF_MESSAGE = frozenset(
    {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "stop_details", "usage"}
)
_READ_OF_USAGE = frozenset(
    {
        *("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        *("output_tokens", "output_tokens_details"),
    }
)
_ORDER = ("reasoning_details", "content", "tool_calls", "provider_content")


def whole(body: bytes, created: int) -> Fields:
    """The whole canonical answer. Raises `Unreadable`."""
    message = _decoded(body, "answered with something that is no message")
    if message.get("type") == "error" or message.get("error") is not None:
        raise Unreadable("answered with an error that it called a success")
    try:
        return _whole(message, created)
    except (TypeError, KeyError):
        # No cause: it may quote the answer.
        raise Unreadable("answered with something that is no message") from None


def _whole(message: Fields, created: int) -> Fields:
    said: dict[str, list[Any]] = {name: [] for name in _ORDER}
    layout: list[list[Any]] = []
    readable = []

    def add(name: str, item: Any, size: int = 1) -> None:
        said[name].append(item)
        if size and layout and layout[-1][0] == name:
            layout[-1][1] += size
        elif size:
            layout.append([name, size])

    for block in _list(message["content"]):
        kind = _text(block["type"])
        if kind == "text":
            text = _text(block["text"])
            add("content", text, len(text))
            if block.get("citations"):
                add("provider_content", _cited(len(text), _list(block["citations"])))
        elif kind == "thinking":
            item = _thinking(len(said["reasoning_details"]), _text(block["thinking"]))
            if block.get("signature"):
                item["signature"] = _text(block["signature"])
            readable.append(item["text"])
            add("reasoning_details", item)
        elif kind == "redacted_thinking":
            add("reasoning_details", _redacted(len(said["reasoning_details"]), block))
        elif kind == "tool_use":
            call = _call(block)
            call["function"]["arguments"] = _json(_object(block.get("input") or {}))
            add("tool_calls", call)
        else:
            add("provider_content", _own(block))
    content = "".join(said["content"])
    answer: Fields = {"role": "assistant", "content": content}
    if not content and said["tool_calls"]:
        answer["content"] = None
    if "".join(readable):
        answer["reasoning_content"] = "".join(readable)
    answer |= {name: said[name] for name in ("reasoning_details", "tool_calls", "provider_content") if said[name]}
    places = [_ORDER.index(name) for name, _ in layout]
    if any(after <= before for before, after in pairwise(places)):
        answer["layout"] = layout
    finish = _finish(message, calls=bool(said["tool_calls"]))
    fields = {
        **_frame(message, created, "chat.completion"),
        "choices": [{"index": 0, "message": answer, "logprobs": None, **finish}],
        **_others(message),
    }
    usage = _usage(message.get("usage"))
    return {**fields, "usage": usage} if usage else fields


class EventDecoder:
    """The events of one stream.

    Chunks come as text, thinking and arguments do; a block that only this
    dialect has comes when it is whole. Nothing comes before there is something
    to say, so that an answer that fails at once can be asked for elsewhere.
    """

    def __init__(self, created: int) -> None:
        self.finished = False
        self.complete = False
        self._created = created
        self._frame: Fields = {}
        self._blocks: dict[int, _Block] = {}
        self._message: Fields = {}  # what the beginning and the end said of the whole
        self._usage: Fields = {}
        self._reasoning = 0
        self._calls = 0
        self._text = False
        self._text_ended: Fields | None = None  # the end of a text that another one may follow
        self._held: Chunk | None = None  # the first, until another follows: an error may be all that does

    def feed(self, data: bytes) -> Sequence[Chunk]:
        event = _decoded(data, "had an event that is not the JSON it should be")
        try:
            chunks = self._read(event)
        except (TypeError, KeyError):
            # No cause: it may quote the event.
            raise Unreadable("had an event that is not one of this API") from None
        if self._held is None or not chunks:
            return chunks
        first, self._held = self._held, None
        return [first, *chunks]

    def _read(self, event: Fields) -> Sequence[Chunk]:
        kind = _text(event["type"])
        if kind == "content_block_delta":
            return self._delta(self._blocks[_index(event)], _object(event["delta"]))
        if kind == "ping":
            return ()
        if kind == "error":
            raise Unreadable("ended with an error")
        if kind == "message_start":
            return self._start(_object(event["message"]))
        if not self._frame:
            raise Unreadable("had an event before its beginning")
        if kind == "content_block_start":
            return self._open(_index(event), _object(event["content_block"]))
        if kind == "content_block_stop":
            return self._close(event)
        if kind == "message_delta":
            return self._end(event)
        if kind == "message_stop":
            self.finished = True
            return () if self.complete else self._finish()
        return (self._event(event),)

    def _start(self, message: Fields) -> Sequence[Chunk]:
        if self._frame:
            raise Unreadable("began twice")
        self._frame = _frame(message, self._created, "chat.completion.chunk")
        self._message = message
        self._usage = dict(_object(message.get("usage") or {}))
        self._held = self._chunk({"role": "assistant", "content": None})
        return ()

    def _open(self, index: int, given: Fields) -> Sequence[Chunk]:
        kind = _text(given["type"])
        ended, self._text_ended = self._text_ended, None
        block = self._blocks[index] = _Block(kind, given)
        if kind == "text":
            text = _text(given["text"])
            block.length = len(text)
            block.citations = list(_list(given.get("citations") or []))
            # Where one text ends and the next begins is not to be seen in the canonical form.
            chunks = [self._event(ended)] if ended is not None else []
            return [*chunks, *self._said(text)]
        if kind == "thinking":
            block.position = self._reasoning
            self._reasoning += 1
            text = _text(given["thinking"])
            block.signature = _text(given.get("signature") or "")
            return (self._chunk(_reasoning(_thinking(block.position, text))),)
        if kind == "redacted_thinking":
            item = _redacted(self._reasoning, given)
            self._reasoning += 1
            return (self._chunk({"reasoning_details": [item]}),)
        if kind == "tool_use":
            block.position = self._calls
            self._calls += 1
            return (self._chunk({"tool_calls": [{"index": block.position, **_call(given)}]}),)
        return ()

    def _delta(self, block: "_Block", delta: Fields) -> Sequence[Chunk]:
        kind = delta["type"]
        if kind == "text_delta" and block.kind == "text":
            text = _text(delta["text"])
            block.length += len(text)
            return self._said(text)
        if kind == "input_json_delta":
            piece = _text(delta["partial_json"])
            block.pieces.append(piece)
            if block.kind != "tool_use" or not piece:
                return ()
            return (self._chunk({"tool_calls": [{"index": block.position, "function": {"arguments": piece}}]}),)
        if kind == "thinking_delta" and block.kind == "thinking":
            text = _text(delta["thinking"])
            return (self._chunk(_reasoning(_thinking(block.position, text))),) if text else ()
        if kind == "signature_delta" and block.kind == "thinking":
            block.signature = _text(delta["signature"])
        elif kind == "citations_delta" and block.kind == "text":
            block.citations.append(delta["citation"])
        else:
            block.grow(delta)
        return ()

    def _close(self, event: Fields) -> Sequence[Chunk]:
        block = self._blocks.pop(_index(event))
        if block.kind == "text":
            self._text_ended = event
            if block.citations:
                return (self._chunk({"provider_content": [_cited(block.length, block.citations)]}),)
        elif block.kind == "thinking":
            if block.signature:
                item = {**_thinking(block.position, ""), "signature": block.signature}
                return (self._chunk({"reasoning_details": [item]}),)
        elif block.kind == "tool_use":
            if not "".join(block.pieces):
                arguments = _json(_object(block.given.get("input") or {}))
                call = {"index": block.position, "function": {"arguments": arguments}}
                return (self._chunk({"tool_calls": [call]}),)
        elif block.kind != "redacted_thinking":
            return (self._chunk({"provider_content": [_own(block.whole())]}),)
        return ()

    def _end(self, event: Fields) -> Sequence[Chunk]:
        self._message = {**self._message, **_present(_object(event["delta"]))}
        self._usage |= _present(_object(event.get("usage") or {}))
        return self._finish() if self._message.get("stop_reason") is not None else ()

    def _finish(self) -> Sequence[Chunk]:
        """Finish reason and usage; where the end comes in two events, the second's usage again."""
        # Servers of other makers forget to close a block.
        chunks = [chunk for index in list(self._blocks) for chunk in self._close({"index": index})]
        if not self.complete:
            self.complete = True
            delta = {} if self._text or self._calls else {"content": ""}
            fields = self._chunk(delta, _finish(self._message, calls=self._calls > 0), _others(self._message))
            chunks.append(fields)
        usage = _usage(self._usage)
        if usage:
            chunks.append(_chunk({**self._frame, "choices": [], "usage": usage}))
        return chunks

    def _said(self, text: str) -> Sequence[Chunk]:
        if not text:
            return ()
        self._text = True
        return (self._chunk({"content": text}),)

    def _chunk(self, delta: Fields, finish: Fields | None = None, others: Fields | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, **(finish or {"finish_reason": None})}
        return _chunk({**self._frame, "choices": [choice], **(others or {})})

    def _event(self, event: Fields) -> Chunk:
        return _chunk({**self._frame, "choices": [], "provider_event": {"dialect": "anthropic", "data": event}})


class _Block:
    """A block that is open."""

    def __init__(self, kind: str, given: Fields) -> None:
        self.kind = kind
        self.given = given
        self.position = 0
        self.length = 0
        self.signature = ""
        self.citations: list[Any] = []
        self.pieces: list[str] = []

    def grow(self, delta: Fields) -> None:
        """A delta nobody knows: its text and lists go on, anything else is the last word."""
        for name, value in delta.items():
            so_far = self.given.get(name)
            if name == "type":
                continue
            if (isinstance(value, str) and isinstance(so_far, str)) or (
                isinstance(value, list) and isinstance(so_far, list)
            ):
                self.given[name] = so_far + value  # type: ignore[operator]  # both are str, or both list
            else:
                self.given[name] = value

    def whole(self) -> Fields:
        pieces = "".join(self.pieces)
        if not pieces:
            return self.given
        try:
            return {**self.given, "input": msgspec.json.decode(pieces)}
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            # Cut off at the limit, or in mid-stream: what there is of it is kept.
            return {**self.given, "input": {"INVALID_JSON": pieces}}


def _decoded(data: bytes, otherwise: str) -> Fields:
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise Unreadable(otherwise)
    return decoded


def _chunk(fields: Fields) -> Chunk:
    return Chunk(msgspec.json.encode(fields), fields)


def _frame(message: Fields, created: int, kind: str) -> Fields:
    return {"id": _text(message["id"]), "object": kind, "created": created, "model": _text(message["model"])}


def _others(message: Fields) -> Fields:
    """What this API says of a whole answer and the canonical form has no field for: the container, diagnostics …"""
    others = {name: value for name, value in message.items() if name not in _READ_OF_MESSAGE and value is not None}
    return {"provider_fields": {"dialect": "anthropic", **others}} if others else {}


def _finish(message: Fields, *, calls: bool) -> Fields:
    """A reason nobody knows is taken for an answer that was cut off: nothing says that it is all there."""
    reason = message.get("stop_reason")
    if reason is None:
        return {"finish_reason": "tool_calls" if calls else "stop"}
    finish: Fields = {"finish_reason": _FINISHES.get(_text(reason), "length")}
    if reason not in _SAID_ALREADY:
        finish["native_finish_reason"] = reason
    for name in ("stop_sequence", "stop_details"):
        if message.get(name) is not None:
            finish[name] = message[name]
    return finish


def _usage(usage: Any) -> Fields | None:
    """None where the counts are none: they are then counted here."""
    if not isinstance(usage, dict):
        return None
    counts = [
        usage.get(name) or 0
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    ]
    if "output_tokens" not in usage or not all(type(count) is int and count >= 0 for count in counts):
        return None
    fresh, read, written, output = counts
    prompt = fresh + read + written
    fields: Fields = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    fields["prompt_tokens_details"] = {"cached_tokens": read, "cache_write_tokens": written}
    details = usage.get("output_tokens_details")
    thinking = details.get("thinking_tokens") if isinstance(details, dict) else None
    if type(thinking) is int and thinking >= 0:
        fields["completion_tokens_details"] = {"reasoning_tokens": thinking}
    others = {name: value for name, value in usage.items() if name not in _READ_OF_USAGE and value is not None}
    if others:
        fields["provider_usage"] = {"dialect": "anthropic", **others}
    return fields


def _thinking(position: int, text: str) -> Fields:
    return {"type": "reasoning.text", "index": position, "format": REASONING_FORMAT, "text": text}


def _reasoning(item: Fields) -> Fields:
    readable = {"reasoning_content": item["text"]} if item["text"] else {}
    return {**readable, "reasoning_details": [item]}


def _redacted(position: int, block: Fields) -> Fields:
    return {
        "type": "reasoning.encrypted",
        "index": position,
        "format": REASONING_FORMAT,
        "data": _text(block["data"]),
    }


def _call(block: Fields) -> Fields:
    """A tool call whose arguments are to come."""
    function = {"name": _text(block["name"]), "arguments": ""}
    call: Fields = {"id": _text(block["id"]), "type": "function", "function": function}
    if block.get("toolset_name") is not None:
        call["toolset_name"] = block["toolset_name"]
    if block.get("caller") not in (None, {"type": "direct"}):
        call["caller"] = block["caller"]
    return call


def _own(block: Fields) -> Fields:
    return {"dialect": "anthropic", "block": block}


def _cited(length: int, citations: Sequence[Any]) -> Fields:
    """The citations of the last `length` characters said."""
    return _own({"type": CITATIONS, "length": length, "citations": citations})


def _present(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def _json(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _index(event: Fields) -> int:
    index = event["index"]
    if type(index) is not int:
        raise TypeError
    return index


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError
    return value


def _object(value: Any) -> Fields:
    if type(value) is not dict:
        raise TypeError
    return value
