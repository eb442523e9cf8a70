"""A canonical answer as a message of Anthropic's Messages API, whole or as the events of a stream.

https://platform.claude.com/docs/en/build-with-claude/streaming
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from models.completion import Completion
from models.errors import GatewayError
from models.request import Request
from service.api import sse
from service.api.anthropic_errors import error_body
from service.api.anthropic_request import FORMAT
from service.api.carried import packed
from service.caching.assembly import usage_fields
from service.caching.replay import LAID_OUT, adds_up, mirrored

Json = dict[str, Any]

_STOP_REASONS = frozenset(
    {
        *("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "compaction", "refusal"),
        "model_context_window_exceeded",
    }
)
_FROM_FINISH = {"length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use"}
# What `provider_content` calls the citations of the text before it.
_CITATIONS = "text_citations"
_IN_DELTA = frozenset({"container"})  # of `provider_fields`, what a stream's last delta has; the rest is beside it
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_LISTS = ("reasoning_details", "tool_calls", "provider_content")


def whole(completion: Completion, request: Request) -> bytes:
    """`{"id", "type": "message", "role", "model", "content", "stop_reason", "stop_sequence", "usage"}`."""
    answer: Json = msgspec.json.decode(completion.body)
    choice = _first_choice(answer)
    message = choice.get("message")
    said = _said(message if isinstance(message, dict) else {})
    name = _message_id(answer.get("id"))
    usage = answer.get("usage")
    return msgspec.json.encode(
        {
            **_opening(name, answer.get("model") or completion.model or request.model),
            "content": _Content(said, name).blocks,
            **_ending(choice, called="tool_calls" in said, refused="refusal" in said),
            **_provider_fields(answer),
            "usage": _usage(usage if isinstance(usage, dict) else usage_fields(completion.usage)),
        }
    )


# --- what both shapes have


def _first_choice(answer: Json) -> Json:
    """This dialect has one answer a request; of several the first is told."""
    for choice in _list(answer.get("choices")):
        if isinstance(choice, dict) and choice.get("index", 0) == 0:
            return choice
    return {}


def _message_id(name: object) -> str:
    if not isinstance(name, str) or not name:
        return f"msg_{secrets.token_hex(12)}"
    return name if name.startswith("msg_") else f"msg_{name}"


def _opening(name: str, model: object) -> Json:
    return {"id": name, "type": "message", "role": "assistant", "model": model}


def _ending(choice: Json, *, called: bool, refused: bool) -> Json:
    """`stop_reason` and what goes with it. Where a rule cut the answer short, the provider's word is void."""
    finish, native = choice.get("finish_reason"), choice.get("native_finish_reason")
    sequence = choice.get("stop_sequence")
    if finish == "content_filter" or refused:
        reason = "refusal"
    elif isinstance(native, str) and native in _STOP_REASONS:
        reason = native
    elif isinstance(finish, str) and finish in _FROM_FINISH:
        reason = _FROM_FINISH[finish]
    elif called:
        reason = "tool_use"  # many servers say `stop` after a call
    else:
        reason = "end_turn" if sequence is None else "stop_sequence"
    return {
        "stop_reason": reason,
        "stop_sequence": sequence if isinstance(sequence, str) else None,
        "stop_details": _fields(choice.get("stop_details")) or None if reason == "refusal" else None,
    }


def _provider_fields(answer: Json) -> Json:
    """What only this API says of a whole answer: the container, edits of the context …"""
    own = _fields(answer.get("provider_fields"))
    return {name: own[name] for name in own if name != "dialect"} if own.get("dialect") == "anthropic" else {}


def _usage(fields: Json) -> Json:
    own = fields.get("provider_usage")
    prompt = _fields(fields.get("prompt_tokens_details"))
    read, written = _count(prompt.get("cached_tokens")), _count(prompt.get("cache_write_tokens"))
    usage: Json = {
        "input_tokens": max(0, _count(fields.get("prompt_tokens")) - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": _count(fields.get("completion_tokens")),
    }
    thought = _count(_fields(fields.get("completion_tokens_details")).get("reasoning_tokens"))
    if thought:
        usage["output_tokens_details"] = {"thinking_tokens": thought}
    if isinstance(own, dict) and own.get("dialect") == "anthropic":
        usage |= {name: own[name] for name in own if name != "dialect" and name not in usage}
    if fields.get("estimated"):
        usage["estimated"] = True
    return usage


def _tool_id(call: Json, message: str, index: int) -> str:
    """Calls of a dialect without ids are told apart over the whole conversation."""
    name = call.get("id")
    return name if isinstance(name, str) and name else f"toolu_{message.removeprefix('msg_')}_{index}"


def _only_here(call: Json) -> Json:
    """What this API alone says of a call. Another has a `caller` too, of its own shape."""
    fields: Json = {}
    if _string(_fields(call.get("caller")).get("type")).startswith("code_execution"):
        fields["caller"] = call["caller"]
    if isinstance(call.get("toolset_name"), str):
        fields["toolset_name"] = call["toolset_name"]
    return fields


def _is_own(item: object) -> bool:
    """Whether `item` of `provider_content` is of this dialect."""
    own = _fields(item)
    return own.get("dialect") == "anthropic" and isinstance(_fields(own.get("block")).get("type"), str)


def _fields(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# --- the whole answer


def _said(message: Json) -> Json:
    """What `message` says, without fields that are empty or of a type they cannot have."""
    said: Json = {name: message[name] for name in _TEXTS if message.get(name) and isinstance(message[name], str)}
    said |= {name: message[name] for name in _LISTS if message.get(name) and isinstance(message[name], list)}
    if "layout" in message:
        said["layout"] = message["layout"]
    if "reasoning" in said:
        said.setdefault("reasoning_content", said["reasoning"])
    return said


class _Content:
    """The blocks of a whole answer, in the order of `layout`, else reasoning, text, tool calls and the rest."""

    def __init__(self, said: Json, name: str) -> None:
        self.blocks: list[Json] = []
        self._name = name
        self._text: Json | None = None  # the block that goes on where more text comes
        self._thought: Json | None = None  # and another provider's reasoning, with what its maker signed
        self._signed: list[Json] = []
        if "reasoning_content" in said and "reasoning_details" not in said:
            self._think(said["reasoning_content"])
        beside = mirrored(said) if "reasoning_details" in said else []
        layout: Any = said.get("layout")
        if not adds_up(layout, said):
            layout = [(field, len(said[field])) for field in LAID_OUT if field in said]
        done = dict.fromkeys(LAID_OUT, 0)
        for field, count in layout:
            begin, end = done[field], done[field] + count
            done[field] = end
            run = said.get(field, ())[begin:end]
            if field == "content":
                self._say(run)
            elif field == "reasoning_details":
                for detail, text in zip(run, beside[begin:end], strict=True):
                    self._add_detail(_fields(detail), _string(text))
            elif field == "tool_calls":
                for index, call in enumerate(run, begin):
                    self._append(_tool_use(_fields(call), name, index))
            else:
                for item in filter(_is_own, run):
                    self._add_own(item["block"])
        if "refusal" in said:
            self._append({"type": "text", "text": said["refusal"]})
        self._finish()

    def _finish(self) -> None:
        if self._thought is not None and not self._thought["thinking"] and len(self.blocks) > 1:
            self.blocks.pop()  # see `_Block.is_afterthought`
        self._end()

    def _append(self, block: Json) -> Json:
        self._end()
        self.blocks.append(block)
        return block

    def _end(self) -> None:
        if self._thought is not None:
            self._thought["signature"] = packed(self._signed)
        self._text = self._thought = None

    def _say(self, text: str) -> None:
        if text and self._text is None:
            self._text = self._append({"type": "text", "text": text})
        elif text and self._text is not None:
            self._text["text"] += text

    def _think(self, text: str, *details: Json) -> None:
        if self._thought is None:
            self._thought = self._append({"type": "thinking", "thinking": "", "signature": ""})
            self._signed = []
        self._thought["thinking"] += text
        self._signed += details

    def _add_detail(self, detail: Json, text: str) -> None:
        if detail.get("format") != FORMAT:
            self._think(text, detail)
        elif detail.get("type") == "reasoning.encrypted":
            self._append({"type": "redacted_thinking", "data": _string(detail.get("data"))})
            if text:
                self._think(text)
        else:
            thinking = _string(detail.get("text")) or text
            signature = _string(detail.get("signature"))
            self._append({"type": "thinking", "thinking": thinking, "signature": signature})

    def _add_own(self, block: Json) -> None:
        if block["type"] != _CITATIONS:
            self._append(block)
            return
        said, self._text = self._text, None
        citations = _list(block.get("citations"))
        if said is None or not citations:
            return
        length = _count(block.get("length"))
        if 0 < length < len(said["text"]):
            cited = said["text"][-length:]
            said["text"] = said["text"][:-length]
            said = self._append({"type": "text", "text": cited})
        said["citations"] = citations


def _tool_use(call: Json, message: str, index: int) -> Json:
    function = _fields(call.get("function"))
    return {
        "type": "tool_use",
        "id": _tool_id(call, message, index),
        "name": _string(function.get("name")),
        "input": _input(function.get("arguments")),
        **_only_here(call),
    }


def _input(arguments: object) -> Json:
    """Arguments that are no JSON object stay readable under the key that the API's own pages suggest for them."""
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str) or not arguments.strip():
        return {}
    parsed = _parsed(arguments)
    return {"INVALID_JSON": arguments} if parsed is None else parsed


def _parsed(arguments: str) -> Json | None:
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- the stream


class _Block:
    """One content block on its way out.

    The API has one block open at a time. The first in the queue is sent as it
    arrives; what belongs to later ones waits in `deltas`.
    """

    __slots__ = ("content", "deltas", "details", "key", "ready", "signature", "started", "written")

    def __init__(self, key: object, content: Json, *, ready: bool = True) -> None:
        self.key = key
        self.content = content
        self.ready = ready  # whether `content` is all that its first event has to say
        self.started = False
        self.deltas: list[Json] = []
        self.written: list[str] = []  # arguments of a call
        self.signature: list[str] = []
        self.details: list[Json] = []

    @property
    def finished(self) -> bool:
        """Whether it may end because another begins: a call only with its arguments complete."""
        return not isinstance(self.key, int) or _parsed("".join(self.written)) is not None

    @property
    def is_afterthought(self) -> bool:
        """Whether nobody but its maker can read it. Clients take the last block for the answer: one like this at the
        end would hide it."""
        return self.key == "foreign" and not self.started and not self.deltas

    def closing(self) -> list[Json]:
        if self.key == "foreign":
            return [{"type": "signature_delta", "signature": packed(self.details)}]
        signature = "".join(self.signature)
        return [{"type": "signature_delta", "signature": signature}] if signature else []


def _text(key: object) -> _Block:
    return _Block(key, {"type": "text", "text": ""})


def _thinking(key: object) -> _Block:
    return _Block(key, {"type": "thinking", "thinking": "", "signature": ""})


def _foreign(key: object) -> _Block:
    """Reasoning of another maker, which begins when there is something to read or another block comes."""
    return _Block(key, {"type": "thinking", "thinking": "", "signature": ""}, ready=False)


def _redacted(key: object) -> _Block:
    return _Block(key, {"type": "redacted_thinking", "data": ""}, ready=False)


def _in_pieces(block: Json) -> tuple[Json, list[Json]]:
    """A block of this dialect as its start and its deltas: clients take the input of a call from those alone."""
    if isinstance(block.get("input"), dict):
        arguments = msgspec.json.encode(block["input"]).decode()
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
    if block["type"] == "compaction":
        summary: Json = {name: block[name] for name in ("content", "encrypted_content") if name in block}
        return {**block, **dict.fromkeys(summary)}, [{"type": "compaction_delta", **summary}]
    return block, []


class Stream:
    """`message_start`, each block with its start, deltas and stop, `message_delta`, `message_stop`."""

    media_type = sse.MEDIA_TYPE

    def __init__(self, request: Request) -> None:
        self._model = request.model
        self._frame: Json = {}
        self._id = ""
        self._out: list[bytes] = []
        self._queue: list[_Block] = []
        self._index = 0
        self._usage: Json | None = None
        self._choice: Json = {}
        self._calls: set[int] = set()
        self._refused = False
        self._reasons_in = ""

    def chunks(self, payloads: Sequence[bytes]) -> bytes:
        for payload in payloads:
            self._add(msgspec.json.decode(payload))
        return self._taken()

    def end(self, completion: Completion) -> bytes:
        if self._usage is None or not self._id:
            answer: Json = msgspec.json.decode(completion.body)
            usage = answer.get("usage")
            self._usage = self._usage or (usage if isinstance(usage, dict) else usage_fields(completion.usage))
            self._frame = {**answer, **self._frame}
            self._start()
        self._close(all_of_them=True)
        if not self._choice.get("finish_reason") and completion.finish_reasons:
            self._choice["finish_reason"] = completion.finish_reasons[0]
        ending = _ending(self._choice, called=bool(self._calls), refused=self._refused)
        fields = _provider_fields(self._frame)
        delta = {**ending, **{name: fields.pop(name) for name in _IN_DELTA & fields.keys()}}
        self._send("message_delta", delta=delta, **fields, usage=_usage(self._usage or {}))
        self._send("message_stop")
        return self._taken()

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return sse.named_event("error", error_body(error, request_id))

    # --- chunks

    def _add(self, chunk: Json) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        if not self._id:
            # Azure's first chunk has an empty id and model, and no choice.
            self._frame.update((name, chunk[name]) for name in ("id", "model") if chunk.get(name))
        fields = chunk.get("provider_fields")
        if fields is not None:
            self._frame["provider_fields"] = fields
        event = chunk.get("provider_event")
        if event is not None:
            self._pass_on(event)
        for choice in _list(chunk.get("choices")):
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._start()
                delta = choice.get("delta")
                if isinstance(delta, dict):
                    self._add_delta(delta)
                for name in ("finish_reason", "native_finish_reason", "stop_sequence", "stop_details"):
                    if choice.get(name) is not None:
                        self._choice[name] = choice[name]
                if choice.get("finish_reason") is not None:
                    self._close(all_of_them=True)

    def _add_delta(self, delta: Json) -> None:
        details = delta.get("reasoning_details")
        reasoning = self._reasoning(delta)
        if details or reasoning:
            self._add_reasoning(_list(details), reasoning)
        text = delta.get("content")
        if text and isinstance(text, str):
            self._say("text", text)
        refusal = delta.get("refusal")
        if refusal and isinstance(refusal, str):
            self._refused = True
            self._say("refusal", refusal)
        for part in _list(delta.get("tool_calls")):
            if isinstance(part, dict):
                self._add_call(part)
        for item in _list(delta.get("provider_content")):
            if _is_own(item):
                self._add_own(item["block"])

    def _reasoning(self, delta: Json) -> str:
        """Some servers have it under two names; the first that is seen counts."""
        for name in ("reasoning_content", "reasoning"):
            text = delta.get(name)
            if text and isinstance(text, str) and self._reasons_in in ("", name):
                self._reasons_in = name
                return text
        return ""

    def _add_reasoning(self, details: list[Any], text: str) -> None:
        for detail in details:
            if not isinstance(detail, dict):
                continue
            if detail.get("format") != FORMAT:
                self._last("foreign", _foreign).details.append(detail)
                continue
            key = ("detail", _count(detail.get("index")))
            if detail.get("type") == "reasoning.encrypted":
                block = self._last(key, _redacted)
                block.content["data"] += _string(detail.get("data"))
                continue
            block = self._last(key, _thinking)
            block.signature.append(_string(detail.get("signature")))
            thought, text = _string(detail.get("text")) or text, ""  # they say the same
            if thought:
                self._write(block, {"type": "thinking_delta", "thinking": thought})
        if text:
            block = self._last("foreign", _foreign)
            block.ready = True
            self._write(block, {"type": "thinking_delta", "thinking": text})

    def _say(self, key: str, text: str) -> None:
        self._write(self._last(key, _text), {"type": "text_delta", "text": text})

    def _add_call(self, part: Json) -> None:
        index = self._call_index(part)
        function = _fields(part.get("function"))
        block = next((block for block in self._queue if block.key == index), None)
        if block is None:
            if index in self._calls:
                return  # its arguments were complete: nothing that follows can be part of them
            self._calls.add(index)
            content = {
                "type": "tool_use",
                "id": _tool_id(part, self._id, index),
                "name": "",
                "input": {},
                **_only_here(part),
            }
            block = self._append(_Block(index, content, ready=False))
        name = function.get("name")
        if not block.ready and isinstance(name, str) and name:
            block.content["name"] = name
            block.ready = True
            self._show()
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments and isinstance(arguments, str):
            block.written.append(arguments)
            self._write(block, {"type": "input_json_delta", "partial_json": arguments})
            if len(self._queue) > 1 and arguments.rstrip().endswith("}"):
                self._close()

    def _call_index(self, part: Json) -> int:
        """Servers that give no index begin each call with an id."""
        index = part.get("index")
        if isinstance(index, int) and not isinstance(index, bool):
            return index
        last = max(self._calls, default=-1)
        return last + 1 if part.get("id") or last < 0 else last

    def _add_own(self, block: Json) -> None:
        if block["type"] != _CITATIONS:
            content, deltas = _in_pieces(block)
            opened = self._append(_Block(None, content))
            for delta in deltas:
                self._write(opened, delta)
        elif self._queue and self._queue[-1].key == "text":
            for citation in _list(block.get("citations")):
                self._write(self._queue[-1], {"type": "citations_delta", "citation": citation})
            self._queue[-1].key = None

    def _pass_on(self, event: object) -> None:
        fields = _fields(event)
        told = _fields(fields.get("data"))
        if fields.get("dialect") != "anthropic" or not isinstance(told.get("type"), str):
            return
        self._start()
        if told["type"] == "content_block_stop":
            # A text that ends before another: in the canonical form they are one.
            if self._queue and self._queue[-1].key == "text":
                self._queue[-1].key = None
        else:
            self._out.append(sse.named_event(told["type"], msgspec.json.encode(told)))

    # --- events

    def _start(self) -> None:
        if self._id:
            return
        self._id = _message_id(self._frame.get("id"))
        opening = _opening(self._id, self._frame.get("model") or self._model)
        nothing_yet: Json = {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
        message = {**opening, **nothing_yet, "usage": _usage(self._usage or {})}
        self._send("message_start", message=message)

    def _last(self, key: object, make: Callable[[object], _Block]) -> _Block:
        """The block that goes on, or a new one where another has begun since."""
        if self._queue and self._queue[-1].key == key:
            return self._queue[-1]
        return self._append(make(key))

    def _append(self, block: _Block) -> _Block:
        self._queue.append(block)
        self._close()
        return block

    def _write(self, block: _Block, delta: Json) -> None:
        if block.started:
            self._send("content_block_delta", index=self._index, delta=delta)
        else:
            block.deltas.append(delta)
            self._show()

    def _show(self) -> None:
        """Begins the first block of the queue once there is enough of it."""
        block = self._queue[0]
        if block.started or not block.ready:
            return
        block.started = True
        self._send("content_block_start", index=self._index, content_block=block.content)
        for delta in block.deltas:
            self._send("content_block_delta", index=self._index, delta=delta)
        block.deltas.clear()

    def _close(self, *, all_of_them: bool = False) -> None:
        """Ends blocks in their order, up to the last or to one that is not finished."""
        while self._queue and (all_of_them or (len(self._queue) > 1 and self._queue[0].finished)):
            block = self._queue[0]
            if block.is_afterthought and len(self._queue) == 1 and self._index:
                self._queue.clear()
                return
            block.ready = True
            self._show()
            for delta in block.closing():
                self._send("content_block_delta", index=self._index, delta=delta)
            self._send("content_block_stop", index=self._index)
            del self._queue[0]
            self._index += 1
        if self._queue:
            self._show()

    def _send(self, kind: str, **fields: Any) -> None:
        self._out.append(sse.named_event(kind, msgspec.json.encode({"type": kind, **fields})))

    def _taken(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out
