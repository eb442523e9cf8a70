"""The chunks of a stream put together to the whole completion they stand for."""

from io import StringIO
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
_CHOICE = frozenset({"index", "delta", "message"})
_ADDED_TO = frozenset({"text", "summary", "data", "signature"})
_OTHER_SHAPE = (msgspec.MsgspecError, ValueError, RecursionError, LookupError, AttributeError, TypeError)
# A text that still grows is a StringIO: a string would be copied by each of its pieces, of which there may be 100,000.
_ENCODER = msgspec.json.Encoder(enc_hook=StringIO.getvalue)


class Assembly:
    """Takes chunks as they arrive. Text fields of deltas add up, lists grow, other fields keep their last value."""

    def __init__(self, operation: Operation) -> None:
        self._chat = operation == "chat"
        self._frame: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._messages: dict[int, _Message] = {}
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
        said = (choice["message"].get("content") if self._chat else choice["text"] for choice in self._choices.values())
        return "\n".join(str(text) for text in map(_plain, said) if text)

    def completion(self, usage: Usage) -> Completion:
        """`usage` stands in where the upstream reported none."""
        reported = self._usage if self.usage is not None else usage_fields(usage)
        choices = [
            {**choice, "message": self._messages[index].whole()} if self._chat else choice
            for index, choice in sorted(self._choices.items())
        ]
        body = {
            **self._frame,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": choices,
            "usage": reported,
        }
        return Completion(
            body=_ENCODER.encode(body),
            model=str(self._frame.get("model", "")),
            usage=usage,
            finish_reasons=tuple(
                _why_finished(choice.get("finish_reason"), choice.get("message") or {}) for choice in choices
            ),
        )

    def _add_choice(self, part: dict[str, Any]) -> None:
        index = part.get("index") or 0
        choice = self._choices.get(index)
        if choice is None:
            if type(index) is not int:
                raise TypeError("the index of a choice is a number")
            # The order of the API's own whole reply.
            if self._chat:
                message = self._messages[index] = _Message()
                opening: dict[str, Any] = {"message": message.fields}
            else:
                opening = {"text": StringIO()}
            choice = self._choices[index] = {"index": index, **opening, "logprobs": None, "finish_reason": None}
        for name, value in part.items():
            if name == "delta":
                if value and not self._messages[index].add(value):
                    self.adds_up = False
            elif name == "text" and not self._chat:
                choice["text"].write(value or "")
            elif name == "logprobs":
                if value:
                    choice["logprobs"] = _with_logprobs(choice["logprobs"], value)
            elif name not in _CHOICE and (value is not None or name not in choice):
                choice[name] = value


class _Message:
    """One message as its deltas add up. Of `fields` texts are StringIO, and `tool_calls` by their index."""

    __slots__ = ("_calls", "_details", "_last_call", "_layout", "fields")

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {"role": "assistant", "content": None}
        self._calls: dict[int, dict[str, Any]] = {}
        self._last_call = 0
        self._details: dict[Any, dict[str, Any]] = {}
        self._layout: list[list[Any]] = []

    def whole(self) -> dict[str, Any]:
        whole = {name: _plain(value) for name, value in self.fields.items()}
        if "tool_calls" in whole and whole["tool_calls"] is self._calls:
            whole["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        if not _goes_without_saying(self._layout):
            whole["layout"] = self._layout
        return whole

    def add(self, delta: dict[str, Any]) -> bool:
        """Whether nothing was lost: pieces of fields that are neither texts nor lists (audio) replace one another."""
        adds_up = True
        fields = self.fields
        for name, value in delta.items():
            so_far = fields.get(name)
            grown = 0
            if name == "role":
                fields[name] = value or "assistant"
            elif type(value) is str:
                if type(so_far) is StringIO:
                    so_far.write(value)
                else:
                    adds_up = adds_up and so_far is None
                    fields[name] = _text(value)
                grown = len(value)
            elif name == "tool_calls" and value:
                before = len(self._calls)
                for part in value:
                    _add_call(self._call_of(part), part)
                fields[name] = self._calls
                grown = len(self._calls) - before
            elif name == "reasoning_details" and type(value) is list:
                details = so_far if type(so_far) is list else []
                before = len(details)
                for part in value:
                    self._add_detail(details, part)
                fields[name] = details
                grown = len(details) - before
            elif name == "function_call" and type(value) is dict:
                _add_call(fields, {"function": value}, under="function_call")
            elif type(value) is list:
                if type(so_far) is list:
                    so_far += value
                elif value or so_far is None:
                    adds_up = adds_up and so_far is None
                    fields[name] = [*value]
                grown = len(value)
            elif value is not None or name not in fields:
                adds_up = adds_up and so_far in (None, value)
                fields[name] = value
            if grown and name in LAID_OUT:
                layout = self._layout
                if layout and layout[-1][0] == name:
                    layout[-1][1] += grown
                else:
                    layout.append([name, grown])
        return adds_up

    def _add_detail(self, details: list[dict[str, Any]], part: dict[str, Any]) -> None:
        """Pieces of one item have its index (docs/dialects.md)."""
        index = part.get("index")
        item = None if index is None else self._details.get(index)
        if item is None:
            item = {name: _text(value) if name in _ADDED_TO and type(value) is str else value
                    for name, value in part.items()}  # fmt: skip
            details.append(item)
            if index is not None:
                self._details[index] = item
            return
        for name, value in part.items():
            if name in _ADDED_TO and type(value) is str:
                _add_text(item, name, value)
            elif value is not None:
                item[name] = value

    def _call_of(self, part: dict[str, Any]) -> dict[str, Any]:
        """The call that `part` belongs to. Servers that give no index begin each call with an id."""
        index = part.get("index")
        if index is None:
            index = self._last_call
            if part.get("id") and self._calls.get(index, {}).get("id"):
                index += 1
        index = int(index)
        self._last_call = max(self._last_call, index)
        return self._calls.setdefault(index, {})


def _text(begins: str) -> StringIO:
    text = StringIO()
    text.write(begins)
    return text


def _add_text(item: dict[str, Any], name: str, value: str) -> None:
    so_far = item.get(name)
    if type(so_far) is StringIO:
        so_far.write(value)
    else:
        item[name] = _text(value)


def _plain(value: Any) -> Any:
    return value.getvalue() if type(value) is StringIO else value


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


def _add_call(call: dict[str, Any], part: dict[str, Any], *, under: str = "function") -> None:
    for name, value in part.items():
        if name in ("function", "custom") and isinstance(value, dict):
            function = call.setdefault(under if name == "function" else name, {})
            for field, text in value.items():
                if field in ("arguments", "input") and type(text) is str:
                    _add_text(function, field, text)
                elif text is not None:
                    function[field] = text
        elif name != "index" and value is not None:
            call[name] = value


def _with_logprobs(so_far: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    merged = {} if so_far is None else so_far
    for name, value in more.items():
        grows = merged.get(name)
        if type(value) is list and type(grows) is list:
            grows += value
        elif value or name not in merged:
            merged[name] = [*value] if type(value) is list else value
    return merged


class _WholeMessage(msgspec.Struct):
    tool_calls: list[dict[str, msgspec.Raw]] | None = None
    function_call: dict[str, msgspec.Raw] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: _WholeMessage | None = None
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
