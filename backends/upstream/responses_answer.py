"""Answers of the OpenAI Responses API in the canonical form, whole or as events.

https://platform.openai.com/docs/api-reference/responses-streaming, and what
becomes of each: docs/dialects/responses.md. A whole answer is read as the
events that would have announced its items, so that both come to the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import msgspec

from backends.upstream.responses_request import FORMAT
from backends.upstream.wire import Unreadable
from models.completion import Chunk

# Items that wait for something the client does.
_CALLS = frozenset(
    {
        "apply_patch_call",
        "computer_call",
        "custom_tool_call",
        "function_call",
        "local_shell_call",
        "mcp_approval_request",
        "shell_call",
    }
)
_CANONICAL = frozenset({"custom_tool_call", "function_call", "message", "reasoning"})
_UNFINISHED = frozenset({"cancelled", "in_progress", "queued"})
_LAID_OUT = ("reasoning_details", "content", "tool_calls", "provider_content")
_LATEST = 2**53  # what is later, or too many, is no time and no count


class _TopLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Logprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_TopLogprob] | None = None


class _Part(msgspec.Struct, gc=False):
    """A piece of a message's content, or of a reasoning item's content or summary."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[_Logprob] | None = None


class _Item(msgspec.Struct, gc=False):
    """A message, a call of a function or a custom tool, or reasoning."""

    id: str | None = None
    content: list[_Part] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    namespace: str | None = None
    caller: dict[str, Any] | None = None
    asynchronous: bool | None = msgspec.field(name="async", default=None)
    summary: list[_Part] | None = None
    encrypted_content: str | None = None


class _Kind(msgspec.Struct, gc=False):
    type: str


class _AnyItem(msgspec.Struct, gc=False):
    type: str
    id: str | None = None


class _Reasons(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    id: str | None = None
    created_at: float | None = None
    model: str | None = None
    service_tier: str | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: _Reasons | None = None
    output: list[msgspec.Raw] | None = None
    usage: dict[str, Any] | None = None
    tool_usage: Any = None
    moderation: Any = None


class _Place(msgspec.Struct, gc=False):
    """What an event is about."""

    type: str
    item_id: str | None = None
    output_index: int | None = None

    @property
    def key(self) -> int | str | None:
        """The item. Its place comes first: proxies are known that change ids between the events of an item."""
        return self.item_id if self.output_index is None else self.output_index


class _Event(_Place, gc=False):
    """The fields of all events that are read."""

    response: _Response | None = None
    item: msgspec.Raw = msgspec.Raw()
    part: _Part | None = None
    content_index: int = 0
    summary_index: int = 0
    delta: str | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    annotation: dict[str, Any] | None = None
    logprobs: list[_Logprob] | None = None


_NO_ANSWER = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_PLACE = msgspec.json.Decoder(_Place)
_EVENT = msgspec.json.Decoder(_Event)
_RESPONSE = msgspec.json.Decoder(_Response)
_KIND = msgspec.json.Decoder(_Kind)
_ITEM = msgspec.json.Decoder(_Item)
_ANY_ITEM = msgspec.json.Decoder(_AnyItem)

Delta = dict[str, Any]


class _Text:
    """One text that comes in pieces: how much of it, of its annotations and of its logprobs has been passed on."""

    __slots__ = ("annotations", "at", "length", "logprobs")

    def __init__(self, at: int) -> None:
        self.at = at  # its place: characters of `content` before it, or the index of its detail
        self.length = 0
        self.annotations = 0
        self.logprobs = 0


class _Open:
    """An output item under way."""

    __slots__ = ("call", "id", "kind", "sealed", "texts")

    def __init__(self, kind: str, item_id: str | None) -> None:
        self.kind = kind
        self.id = item_id
        self.call = 0
        self.sealed = False
        self.texts: dict[tuple[str, int], _Text] = {}


class _Reading:
    """What has been read of one answer, item by item. Each step gives what it adds: deltas and logprobs."""

    def __init__(self) -> None:
        self._items: dict[int | str, _Open] = {}
        self._content = 0  # characters
        self._calls = 0
        self._details = 0
        self._readable = False  # something is in reasoning_content
        self.awaits_client = False
        self.logprobs: list[dict[str, Any]] = []  # of the last step, to be taken

    @property
    def begun(self) -> bool:
        return bool(self._items)

    def open(self, key: int | str, kind: str, item: _Item | _AnyItem) -> Iterator[Delta]:
        """`key` is the item's place in the output, or its id where the server does not say."""
        opened = self._items[key] = _Open(kind, item.id)
        if item.id is not None:
            self._items[item.id] = opened  # for events that do not say its place
        self.awaits_client |= kind in _CALLS
        if isinstance(item, _AnyItem):
            return
        if kind == "message":
            about = {"offset": self._content, "id": item.id, "phase": item.phase}
            if item.id is not None or item.phase is not None:
                yield {"content_items": [{name: value for name, value in about.items() if value is not None}]}
        elif kind != "reasoning":
            opened.call = self._calls
            self._calls += 1
            if kind == "function_call":
                yield _call(opened.call, item, function={"name": _name(item), "arguments": ""})

    def close(self, key: int | str, raw: msgspec.Raw) -> Iterator[Delta]:
        """The item as a whole: whatever of it did not come before."""
        kind, item = _item(raw)
        if self.kind(key) != kind:
            yield from self.open(key, kind, item)
        opened = self._items[key]
        if isinstance(item, _AnyItem):
            yield {"provider_content": [{"dialect": "responses", "block": msgspec.json.decode(raw)}]}
        elif kind == "message":
            for index, part in enumerate(item.content or ()):
                yield from self.whole_text(opened, index, part)
        elif kind == "function_call":
            yield from self.rest(opened, "arguments", 0, item.arguments)
        elif kind == "custom_tool_call":
            # In one piece: chunks of the chat API do not have it in several.
            yield _call(opened.call, item, custom={"name": _name(item), "input": item.input or ""})
        else:
            for index, part in enumerate(item.summary or ()):
                yield from self.rest(opened, "summary", index, part.text)
            for index, part in enumerate(item.content or ()):
                yield from self.rest(opened, "text", index, part.text)
            if not opened.sealed and (item.encrypted_content or not opened.texts):
                opened.sealed = True
                yield self._sealed(opened, item.encrypted_content)

    def find(self, key: int | str | None, kind: str) -> _Open | None:
        """The item an event belongs to; a server that did not announce it meant one of `kind`."""
        if key is None:
            return None
        if key not in self._items and kind in ("message", "reasoning"):
            self._items[key] = _Open(kind, key if isinstance(key, str) else None)
        opened = self._items.get(key)
        return opened if opened is not None and opened.kind == kind else None

    def kind(self, key: int | str | None) -> str | None:
        opened = None if key is None else self._items.get(key)
        return None if opened is None else opened.kind

    def piece(self, opened: _Open, field: str, index: int, piece: str | None) -> Iterator[Delta]:
        """The next characters of one text: `content`, `refusal`, `arguments`, `summary` or `text` of a reasoning."""
        if not piece:
            return
        text = opened.texts.get((field, index)) or self._begin(opened, field, index)
        first = not text.length
        text.length += len(piece)
        if field == "content":
            self._content += len(piece)
            yield {"content": piece}
        elif field == "refusal":
            yield {"refusal": piece}
        elif field == "arguments":
            yield {"tool_calls": [{"index": opened.call, "function": {"arguments": piece}}]}
        else:
            detail = {"type": f"reasoning.{field}", "index": text.at, "format": FORMAT, field: piece}
            if first and opened.id is not None:
                detail["id"] = opened.id
            parted = first and self._readable
            self._readable = True
            yield {"reasoning_content": "\n\n" + piece if parted else piece, "reasoning_details": [detail]}

    def rest(self, opened: _Open, field: str, index: int, whole: str | None) -> Iterator[Delta]:
        """What of a text that is now known as a whole did not come in pieces."""
        so_far = opened.texts.get((field, index))
        yield from self.piece(opened, field, index, (whole or "")[so_far.length if so_far else 0 :])

    def whole_text(self, opened: _Open, index: int, part: _Part) -> Iterator[Delta]:
        yield from self.rest(opened, "refusal", index, part.refusal)
        self.note_logprobs(opened, index, part.logprobs, whole=True)
        yield from self.rest(opened, "content", index, part.text)
        text = opened.texts.get(("content", index)) or self._begin(opened, "content", index)
        for annotation in (part.annotations or ())[text.annotations :]:
            yield from self.annotation(opened, index, annotation)

    def annotation(self, opened: _Open, index: int, annotation: Mapping[str, Any]) -> Iterator[Delta]:
        text = opened.texts.get(("content", index)) or self._begin(opened, "content", index)
        text.annotations += 1
        kind = annotation.get("type")
        if isinstance(kind, str):
            fields = {name: value for name, value in annotation.items() if name != "type"}
            for name in ("start_index", "end_index"):
                if isinstance(fields.get(name), int):
                    fields[name] += text.at
            yield {"annotations": [{"type": kind, kind: fields}]}

    def note_logprobs(self, opened: _Open, index: int, logprobs: list[_Logprob] | None, *, whole: bool = False) -> None:
        if not logprobs:
            return
        text = opened.texts.get(("content", index)) or self._begin(opened, "content", index)
        fresh = logprobs[text.logprobs :] if whole else logprobs
        text.logprobs += len(fresh)
        self.logprobs.extend(
            {
                "token": one.token,
                "logprob": one.logprob,
                "bytes": one.bytes,
                "top_logprobs": [
                    {"token": top.token, "logprob": top.logprob, "bytes": top.bytes} for top in one.top_logprobs or ()
                ],
            }
            for one in fresh
        )

    def _begin(self, opened: _Open, field: str, index: int) -> _Text:
        text = opened.texts[field, index] = _Text(self._content)
        if field in ("summary", "text"):
            text.at = self._details
            self._details += 1
        return text

    def _sealed(self, opened: _Open, data: str | None) -> Delta:
        detail = {"type": "reasoning.summary", "index": self._details, "format": FORMAT, "summary": ""}
        if data:
            detail = {"type": "reasoning.encrypted", "index": self._details, "format": FORMAT, "data": data}
        if opened.id is not None:
            detail["id"] = opened.id
        self._details += 1
        return {"reasoning_details": [detail]}


class Events:
    """Reads one stream of events. `model` is what was asked for, where the answer does not say."""

    def __init__(self, model: str) -> None:
        self.finished = False
        self.complete = False  # the last event is the end mark
        self._reading = _Reading()
        self._frame: dict[str, Any] = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": model}
        self._begun = False

    def feed(self, data: bytes) -> Sequence[Chunk]:
        if data == b"[DONE]":
            return ()
        try:
            return list(self._read(data))
        except _NO_ANSWER:
            # No cause: it may quote the event.
            raise Unreadable("had an event that is not the JSON it should be") from None

    def _read(self, data: bytes) -> Iterator[Chunk]:
        try:
            event = _EVENT.decode(data)
        except msgspec.ValidationError:
            # Events that are not read may have fields of the same names and other types.
            place = _PLACE.decode(data)
            if place.type in _READ:
                raise
            yield from self._other(place.key, data)
            return
        kind = event.type
        if kind not in _READ:
            yield from self._other(event.key, data)
        elif kind in ("error", "response.failed"):
            raise Unreadable("ended with an error")
        elif kind in ("response.completed", "response.incomplete"):
            yield from self._end(event.response or _Response(), whole=kind == "response.completed")
        elif kind in ("response.created", "response.in_progress", "response.queued"):
            # Kept for the first item's chunk: an answer that fails before it has said nothing.
            self._frame |= _frame(event.response or _Response(), self._frame)
        elif kind in ("response.output_item.added", "response.output_item.done"):
            yield from self._item(event, data)
        else:
            for delta in self._step(event):
                yield self._chunk(delta)
            if self._reading.logprobs:
                yield self._chunk({})

    def _item(self, event: _Event, data: bytes) -> Iterator[Chunk]:
        kind, item = _item(event.item)
        key = event.output_index if event.output_index is not None else item.id
        if key is None:
            return
        added = event.type == "response.output_item.added"
        for delta in self._reading.open(key, kind, item) if added else self._reading.close(key, event.item):
            yield self._chunk(delta)
        if not self._begun:
            yield self._chunk({})
        if added:
            yield from self._other(key, data)

    def _step(self, event: _Event) -> Iterator[Delta]:
        kind, index, reading = event.type, event.content_index, self._reading
        of, field = _READ[kind]
        opened = reading.find(event.key, of)
        if opened is None:
            return
        if field in ("summary", "text"):
            index = event.summary_index if field == "summary" else index
            if kind.endswith(".delta"):
                yield from reading.piece(opened, field, index, event.delta)
            else:
                yield from reading.rest(opened, field, index, event.text)
        elif kind.endswith(".annotation.added"):
            yield from reading.annotation(opened, index, event.annotation or {})
        elif kind == "response.content_part.done":
            if event.part is not None:
                yield from reading.whole_text(opened, index, event.part)
        elif kind.endswith(".delta"):
            reading.note_logprobs(opened, index, event.logprobs)
            yield from reading.piece(opened, field, index, event.delta)
        else:
            reading.note_logprobs(opened, index, event.logprobs, whole=True)
            whole = {"content": event.text, "refusal": event.refusal, "arguments": event.arguments}
            yield from reading.rest(opened, field, index, whole[field])

    def _other(self, key: int | str | None, data: bytes) -> Iterator[Chunk]:
        """Word of an item that only this dialect has. What it adds comes with the item's end."""
        kind = self._reading.kind(key)
        if kind is None or kind in _CANONICAL:
            return
        told = {"dialect": "responses", "data": msgspec.json.decode(data)}
        yield _encoded({**self._frame, "choices": [], "provider_event": told})

    def _end(self, response: _Response, *, whole: bool) -> Iterator[Chunk]:
        if response.error is not None:
            raise Unreadable("ended with an error")
        if not whole:
            response.status = "incomplete"
        elif response.status in _UNFINISHED:
            response.status = "completed"
        self._frame |= _frame(response, self._frame)
        if not self._reading.begun:
            for index, raw in enumerate(response.output or ()):
                for delta in self._reading.close(index, raw):
                    yield self._chunk(delta)
        delta = {} if self._begun else {"role": "assistant"}
        ending = _ending(response, self._reading)
        choice = {"index": 0, "delta": delta, **self._logprobs(), **ending}
        yield _encoded({**self._frame, **_beside(response), "choices": [choice]})
        usage = _usage(response)
        if usage is not None:
            yield _encoded({**self._frame, "choices": [], "usage": usage})
        self.finished = True

    def _chunk(self, delta: Delta) -> Chunk:
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, **self._logprobs(), "finish_reason": None}
        return _encoded({**self._frame, "choices": [choice]})

    def _logprobs(self) -> dict[str, Any]:
        if not self._reading.logprobs:
            return {}
        taken, self._reading.logprobs = self._reading.logprobs, []
        return {"logprobs": {"content": taken, "refusal": None}}


def whole(body: bytes, model: str) -> bytes:
    """A Response object as a chat completion. Raises `Unreadable`."""
    try:
        response = _RESPONSE.decode(body)
        if response.error is not None or response.status == "failed":
            raise Unreadable("answered with an error that it called a success")
        if response.output is None:
            raise Unreadable("answered with something that is no chat reply")
        reading = _Reading()
        message: dict[str, Any] = {"role": "assistant", "content": None}
        layout: list[list[Any]] = []
        for index, raw in enumerate(response.output):
            for delta in reading.close(index, raw):
                _add(message, layout, delta)
        if not all(_LAID_OUT.index(one) < _LAID_OUT.index(next_one) for (one, _), (next_one, _) in pairwise(layout)):
            message["layout"] = layout
        frame = {"id": "", "object": "chat.completion", "created": 0, "model": model}
        logprobs = {"content": reading.logprobs, "refusal": None} if reading.logprobs else None
        choice = {"index": 0, "message": message, "logprobs": logprobs, **_ending(response, reading)}
        answer = {**frame, **_frame(response, frame), **_beside(response), "choices": [choice]}
        usage = _usage(response)
        return msgspec.json.encode(answer if usage is None else {**answer, "usage": usage})
    except _NO_ANSWER:
        # No cause: it may quote the body.
        raise Unreadable("answered with something that is no chat reply") from None


# The events that are read, by the kind of item they belong to and the text they add to.
_READ = {
    "error": ("", ""),
    "response.completed": ("", ""),
    "response.created": ("", ""),
    "response.failed": ("", ""),
    "response.in_progress": ("", ""),
    "response.incomplete": ("", ""),
    "response.queued": ("", ""),
    "response.output_item.added": ("", ""),
    "response.output_item.done": ("", ""),
    "response.content_part.done": ("message", "content"),
    "response.output_text.delta": ("message", "content"),
    "response.output_text.done": ("message", "content"),
    "response.output_text.annotation.added": ("message", "content"),
    "response.refusal.delta": ("message", "refusal"),
    "response.refusal.done": ("message", "refusal"),
    "response.function_call_arguments.delta": ("function_call", "arguments"),
    "response.function_call_arguments.done": ("function_call", "arguments"),
    "response.reasoning_summary_text.delta": ("reasoning", "summary"),
    "response.reasoning_summary_text.done": ("reasoning", "summary"),
    "response.reasoning_text.delta": ("reasoning", "text"),
    "response.reasoning_text.done": ("reasoning", "text"),
}


def _call(index: int, item: _Item, **what: dict[str, str]) -> Delta:
    call = {
        "index": index,
        "id": item.call_id or item.id,
        "type": next(iter(what)),
        "item_id": item.id,
        "namespace": item.namespace,
        "caller": item.caller,
        "async": item.asynchronous,
        **what,
    }
    if call["id"] is None:
        raise Unreadable("had a call without an id")
    return {"tool_calls": [{name: value for name, value in call.items() if value is not None}]}


def _name(item: _Item) -> str:
    if item.name is None:
        raise Unreadable("had a call without a name")
    return item.name


def _item(raw: msgspec.Raw) -> tuple[str, _Item | _AnyItem]:
    kind = _KIND.decode(raw).type
    return kind, (_ITEM if kind in _CANONICAL else _ANY_ITEM).decode(raw)


def _add(message: dict[str, Any], layout: list[list[Any]], delta: Delta) -> None:
    """As the chunks would have added up. In a whole item every text comes in one piece, but arguments."""
    for name, value in delta.items():
        if name == "tool_calls":
            _add_call(message, layout, value[0])
            continue
        if name in _LAID_OUT:
            _grow(layout, name, len(value))
        message[name] = value if message.get(name) is None else message[name] + value


def _add_call(message: dict[str, Any], layout: list[list[Any]], part: dict[str, Any]) -> None:
    if "id" in part:
        call = {name: value for name, value in part.items() if name != "index"}
        message["tool_calls"] = [*message.get("tool_calls", ()), call]
        _grow(layout, "tool_calls", 1)
    else:
        message["tool_calls"][-1]["function"]["arguments"] += part["function"]["arguments"]


def _grow(layout: list[list[Any]], name: str, count: int) -> None:
    if layout and layout[-1][0] == name:
        layout[-1][1] += count
    else:
        layout.append([name, count])


def _frame(response: _Response, so_far: Mapping[str, Any]) -> dict[str, Any]:
    created = response.created_at
    return {
        "id": response.id or so_far["id"],
        "created": int(created) if created is not None and 0 <= created < _LATEST else so_far["created"],
        "model": response.model or so_far["model"],
    }


def _beside(response: _Response) -> dict[str, Any]:
    """What is said of the answer, at its end."""
    beside = {"service_tier": response.service_tier, "moderation": _moderation(response.moderation)}
    return {name: value for name, value in beside.items() if value is not None}


def _moderation(moderation: Any) -> dict[str, Any] | None:
    """In the chat API's shape, where results are lists."""
    if not isinstance(moderation, dict):
        return None
    return {side: _moderated(result) for side, result in moderation.items() if isinstance(result, dict)}


def _moderated(result: dict[str, Any]) -> dict[str, Any]:
    if result.get("type") != "moderation_result":
        return result
    return {"type": "moderation_results", "model": result.get("model"), "results": [result]}


def _ending(response: _Response, reading: _Reading) -> dict[str, Any]:
    """The finish reason, with the API's own word where that says more."""
    status = response.status
    if status in _UNFINISHED:
        return {"finish_reason": None, "native_finish_reason": status}
    if status == "incomplete":
        reason = response.incomplete_details.reason if response.incomplete_details else None
        if reason == "content_filter":
            return {"finish_reason": "content_filter"}
        if reason in (None, "max_output_tokens"):
            return {"finish_reason": "length"}
        return {"finish_reason": "length", "native_finish_reason": reason}
    return {"finish_reason": "tool_calls" if reading.awaits_client else "stop"}


def _usage(response: _Response) -> dict[str, Any] | None:
    """Counts as the chat API names them; None where they are none."""
    usage = response.usage
    if usage is None:
        return None
    read, written = usage.get("input_tokens"), usage.get("output_tokens")
    if not _is_count(read) or not _is_count(written):
        return None
    counted: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    more: dict[str, Any] = {}
    for name, own in (
        ("prompt_tokens_details", "input_tokens_details"),
        ("completion_tokens_details", "output_tokens_details"),
    ):
        details = usage.get(own)
        if isinstance(details, dict):
            counted[name] = {key: count for key, count in details.items() if _is_count(count)}
            others = {key: value for key, value in details.items() if value is not None and not _is_count(value)}
            if others:
                more[own] = others
    if response.tool_usage is not None:
        more["tool_usage"] = response.tool_usage
    return {**counted, "provider_usage": {"dialect": "responses", **more}} if more else counted


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LATEST


def _encoded(fields: dict[str, Any]) -> Chunk:
    return Chunk(msgspec.json.encode(fields), fields)
