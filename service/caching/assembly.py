"""The chunks of a stream put together to the whole completion they stand for."""

from itertools import pairwise
from typing import Any, TypeGuard

import msgspec

from models.completion import Completion, Usage
from models.errors import UpstreamError
from models.request import Operation
from service.caching.replay import LAID_OUT

# What an upstream says beyond it is no count, and would not fit where counts are added up.
_MOST_TOKENS = 10**9
# Whatever a chunk of another shape runs into; those of Unicode are ValueErrors.
_NOT_FRAME = frozenset({"choices", "usage", "object", "provider_event"})
_ADDED_TO = frozenset({"text", "summary", "data", "signature"})
_OTHER_SHAPE = (msgspec.MsgspecError, ValueError, RecursionError, LookupError, AttributeError, TypeError)


class Assembly:
    """Takes chunks as they arrive. Text fields of deltas add up, lists grow, other fields keep their last value."""

    def __init__(self, operation: Operation) -> None:
        self._chat = operation == "chat"
        self._frame: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._layouts: dict[int, list[list[Any]]] = {}
        self._usage: dict[str, Any] | None = None
        self.adds_up = True  # no field came in pieces that this module cannot put together

    def add(self, chunk: dict[str, Any]) -> None:
        """Raises `UpstreamError` for one that is not a chunk."""
        try:
            for choice in chunk.get("choices") or ():
                self._add_choice(choice)
        except _OTHER_SHAPE as error:
            raise UpstreamError("the upstream sent a chunk that is not one of this API") from error
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        for name, value in chunk.items():
            # Azure's first chunk has an empty id and model; the next ones have them.
            if name not in _NOT_FRAME and (value or name not in self._frame):
                self._frame[name] = value

    @property
    def usage(self) -> Usage | None:
        return usage_of(self._usage)

    def text(self) -> str:
        """What was said, over all choices; to count tokens where the upstream does not."""
        messages = (choice.get("message") or {"content": choice.get("text")} for choice in self._choices.values())
        return "\n".join(str(message["content"]) for message in messages if message.get("content"))

    def completion(self, usage: Usage) -> Completion:
        """`usage` stands in where the upstream reported none."""
        reported = self._usage if self.usage is not None else usage_fields(usage)
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            message = choice.get("message", {})
            calls = message.get("tool_calls")
            if calls is not None:
                message["tool_calls"] = [calls[index] for index in sorted(calls)]
            layout = self._layouts.get(choice["index"], [])
            if not _goes_without_saying(layout):
                message["layout"] = layout
        body = {
            **self._frame,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": choices,
            "usage": reported,
        }
        return Completion(
            body=msgspec.json.encode(body),
            model=str(self._frame.get("model", "")),
            usage=usage,
            finish_reasons=tuple(
                _why_finished(choice.get("finish_reason"), choice.get("message") or {}) for choice in choices
            ),
        )

    def _add_choice(self, part: dict[str, Any]) -> None:
        index = part.get("index", 0)
        choice = self._choices.get(index)
        if choice is None:
            # The order of the API's own whole reply.
            opening: dict[str, Any] = (
                {"message": {"role": "assistant", "content": None}} if self._chat else {"text": ""}
            )
            choice = self._choices[index] = {"index": index, **opening, "logprobs": None, "finish_reason": None}
        for name, value in part.items():
            if name == "delta":
                if value and not _add_delta(choice["message"], value, self._layouts.setdefault(index, [])):
                    self.adds_up = False
            elif name == "text" and not self._chat:
                choice["text"] += value or ""
            elif name == "logprobs":
                choice["logprobs"] = _merged_logprobs(choice["logprobs"], value)
            elif name != "index" and (value is not None or name not in choice):
                choice[name] = value


def _why_finished(reason: str | None, message: dict[str, Any]) -> str:
    """The finish reason as the rules of the cache need it.

    Where `tool_choice` names a function, and on many compatible servers
    always, an answer that calls tools says `stop`; so does one that refuses.
    """
    if message.get("tool_calls") or message.get("function_call"):
        return "tool_calls"
    if message.get("refusal"):
        return "content_filter"
    return str(reason)


def usage_of(fields: Any) -> Usage | None:
    """The API's usage object as ours; None where it is not one, or holds what cannot be a count of tokens."""
    if not isinstance(fields, dict):
        return None
    prompt, completion = fields.get("prompt_tokens"), fields.get("completion_tokens") or 0
    if not _is_count(prompt) or not _is_count(completion):
        return None
    return Usage(prompt, completion, bool(fields.get("estimated")))


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Ours as the API's usage object; `estimated` says that no upstream counted these."""
    fields: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    return {**fields, "estimated": True} if usage.estimated else fields


def _goes_without_saying(layout: list[list[Any]]) -> bool:
    places = [LAID_OUT.index(name) for name, _ in layout]
    return all(before < after for before, after in pairwise(places))


def _add_delta(message: dict[str, Any], delta: dict[str, Any], layout: list[list[Any]]) -> bool:
    """Whether nothing was lost: pieces of fields that are neither text nor lists (audio) take each other's place."""
    adds_up = True
    for name, value in delta.items():
        if value and name in LAID_OUT:
            before = _size(message, name)
        if name == "role":
            message["role"] = value or "assistant"
        elif name == "tool_calls" and value:
            calls = message["tool_calls"] = message.get("tool_calls") or {}
            for part in value:
                _add_call(_call_of(calls, part), part)
        elif name == "reasoning_details" and isinstance(value, list):
            details = message[name] = message.get(name) or []
            for part in value:
                _add_detail(details, part)
        elif name == "function_call" and isinstance(value, dict):
            _add_call(message, {"function": value}, under="function_call")
        elif isinstance(value, str) and isinstance(message.get(name), str):
            message[name] += value
        elif isinstance(value, list) and isinstance(message.get(name), list):
            message[name] = message[name] + value
        elif value is not None or name not in message:
            adds_up = adds_up and message.get(name) in (None, value)
            message[name] = value
        if value and name in LAID_OUT and (grown := _size(message, name) - before):
            if layout and layout[-1][0] == name:
                layout[-1][1] += grown
            else:
                layout.append([name, grown])
    return adds_up


def _size(message: dict[str, Any], name: str) -> int:
    so_far = message.get(name)
    return len(so_far) if isinstance(so_far, str | list | dict) else 0


def _add_detail(details: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Pieces of one item have its index (docs/dialects.md)."""
    index = part.get("index")
    same = None if index is None else next((item for item in reversed(details) if item.get("index") == index), None)
    if same is None:
        details.append(dict(part))
        return
    for name, value in part.items():
        if name in _ADDED_TO and isinstance(value, str) and isinstance(same.get(name), str):
            same[name] += value
        elif value is not None:
            same[name] = value


def _call_of(calls: dict[int, dict[str, Any]], part: dict[str, Any]) -> dict[str, Any]:
    """The call that `part` belongs to. Servers that give no index begin each call with an id."""
    index = part.get("index")
    if index is None:
        index = max(calls, default=0)
        if part.get("id") and calls.get(index, {}).get("id"):
            index += 1
    return calls.setdefault(int(index), {})


def _add_call(call: dict[str, Any], part: dict[str, Any], *, under: str = "function") -> None:
    for name, value in part.items():
        if name in ("function", "custom") and isinstance(value, dict):
            function = call.setdefault(under if name == "function" else name, {})
            for field, text in value.items():
                if field in ("arguments", "input") and isinstance(text, str):
                    function[field] = function.get(field, "") + text
                elif text is not None:
                    function[field] = text
        elif name != "index" and value is not None:
            call[name] = value


def _merged_logprobs(so_far: dict[str, Any] | None, more: dict[str, Any] | None) -> dict[str, Any] | None:
    if not so_far or not more:
        return more or so_far
    merged = dict(so_far)
    for name, value in more.items():
        both_lists = isinstance(value, list) and isinstance(merged.get(name), list)
        merged[name] = merged[name] + value if both_lists else value or merged.get(name)
    return merged


class _Message(msgspec.Struct):
    tool_calls: list[dict[str, msgspec.Raw]] | None = None
    function_call: dict[str, msgspec.Raw] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None


class _Whole(msgspec.Struct):
    choices: list[_Choice] | None = None
    data: list[msgspec.Raw] | None = None
    model: str | None = None
    usage: Any = None


_WHOLE = msgspec.json.Decoder(_Whole)


def whole(body: bytes, operation: Operation) -> tuple[Completion, bool]:
    """A whole reply as a completion, and whether the upstream counted its tokens.

    Raises `UpstreamError` for JSON of another shape.
    """
    try:
        reply = _WHOLE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError("the upstream's answer is not one of this API") from error
    if (reply.data if operation == "embedding" else reply.choices) is None:
        raise UpstreamError("the upstream's answer is not one of this API")
    usage = usage_of(reply.usage)
    completion = Completion(
        body=body,
        model=reply.model or "",
        usage=usage or Usage(estimated=True),
        finish_reasons=tuple(
            _why_finished(choice.finish_reason, msgspec.structs.asdict(choice.message) if choice.message else {})
            for choice in reply.choices or ()
        ),
    )
    return completion, usage is not None
