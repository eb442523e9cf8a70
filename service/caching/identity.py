"""What makes two requests the same: a hash of everything that is not known to be neutral.

A field the gateway does not know is meaning. So are case and white space in
a text; white space and key order of the JSON are not, nor is which of two ways
a request has to say one thing (docs/dialects.md, "The canonical request").
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

# Fields of the body that shape how an answer travels or who is noted as asking, never what it says.
NEUTRAL = frozenset({"stream", "stream_options", "user", "safety_identifier", "metadata", "prompt_cache_key"})

# The model is in the identity by what it stands for (the route), not by the name it was asked by.
_DROPPED = NEUTRAL | {"model"}

# An answer to these depends on state that lies elsewhere, or is not an answer yet.
STATEFUL = frozenset({"previous_response_id", "conversation", "background", "container", "thread"})
# The same for what a dialect says beyond the canonical form, where these names mean nothing else.
STATEFUL_BEYOND = STATEFUL | {"prompt", "item_reference"}

# What a field says when it says what would be so without it.
_DEFAULTS: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "frequency_penalty": 0,
    "presence_penalty": 0,
}
_TEXT_PART = frozenset({"type", "text"})
# Lists that SDKs send back empty in a message they were given.
_EMPTY: tuple[object, ...] = (None, [])


class Question(NamedTuple):
    """A request cut in two: the text that is compared, and the namespace of all that must be equal."""

    text: str
    namespace: str


def exact_key(body: dict[str, Any], meaning: Sequence[str]) -> str:
    """64 hex digits over the body and `meaning`: operation, route, headers and rules that change an answer."""
    return _digest(_normal(body), meaning)


def question(body: dict[str, Any], meaning: Sequence[str]) -> Question | None:
    """The last user turn as the text to compare; all else, earlier turns included, as its namespace.

    None where the last message is not a user's, or is not one text: of several
    parts some are documents and passages, and a question about another document
    is another question, however much of it is the same.
    """
    rest = _normal(body)
    messages = rest["messages"]
    last = messages[-1]
    if last.get("role") != "user":
        return None
    content = last.get("content")
    shape: object = "text"
    if isinstance(content, str):
        text = content
    elif isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        part = content[0]
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            return None
        # What else the part carries is meaning.
        text, shape = part["text"], [{**part, "text": ""}]
    else:
        return None
    rest["messages"] = [*messages[:-1], {**last, "content": shape}]
    return Question(text, _digest(rest, (*meaning, "question")))


def _normal(body: dict[str, Any]) -> dict[str, Any]:
    """The body as any other request of its meaning has it, without what is neutral. Shares what it does not change."""
    normal = {}
    for name, value in body.items():
        if name in _DROPPED or value is None:
            continue
        if type(value) is float and value.is_integer():
            value = int(value)  # 0.0 is what some SDKs make of 0
        if name not in _DEFAULTS or not _is_default(name, value):
            normal[name] = value
    limit = normal.pop("max_tokens", None)
    if limit is not None:
        normal.setdefault("max_completion_tokens", limit)
    stop = normal.get("stop")
    if isinstance(stop, str):
        normal["stop"] = [stop]
    if normal.get("reasoning_budget") == 0 and normal.get("reasoning_effort", "none") == "none":
        del normal["reasoning_budget"]
        normal["reasoning_effort"] = "none"
    for name in ("tools", "response_format"):
        if name in normal:
            normal[name] = _without_lax(normal[name])
    messages = normal.get("messages")
    if type(messages) is list:
        normal["messages"] = [_normal_message(message) for message in messages]
    return normal


def _is_default(name: str, value: object) -> bool:
    default = _DEFAULTS[name]
    return type(value) is type(default) and value == default  # true is no 1


def _normal_message(message: Any) -> Any:
    if type(message) is not dict or (
        len(message) == 2 and type(message.get("content")) is str and message.get("role") != "developer"
    ):
        return message  # most are
    normal = {name: value for name, value in message.items() if value not in _EMPTY}
    if normal.get("role") == "developer":
        normal["role"] = "system"
    content = normal.get("content")
    if isinstance(content, list):
        alone = content[0] if len(content) == 1 else None
        if isinstance(alone, dict) and alone.keys() == _TEXT_PART and alone["type"] == "text":
            normal["content"] = alone["text"]
        else:
            normal["content"] = [_normal_part(part) for part in content]
    calls = normal.get("tool_calls")
    if isinstance(calls, list):
        normal["tool_calls"] = [_normal_call(call) for call in calls]
    return normal


def _normal_part(part: Any) -> Any:
    image = part.get("image_url") if isinstance(part, dict) else None
    if isinstance(image, dict) and image.get("detail") == "auto":
        return {**part, "image_url": {name: value for name, value in image.items() if name != "detail"}}
    return part


def _normal_call(call: Any) -> Any:
    """White space between the tokens of arguments means nothing: each dialect writes them in its own way."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str) or " " not in arguments:
        return call
    try:
        compact = msgspec.json.format(arguments, indent=-1)
    except (msgspec.MsgspecError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": compact}}


def _without_lax(declared: Any) -> Any:
    """Tools, or a response format, without the `strict: false` that is so anyway."""
    if isinstance(declared, list):
        return [_without_lax(tool) for tool in declared]
    if not isinstance(declared, dict):
        return declared
    for name in ("function", "json_schema"):
        inner = declared.get(name)
        if isinstance(inner, dict) and inner.get("strict", True) in (False, None):
            return {**declared, name: {key: value for key, value in inner.items() if key != "strict"}}
    return declared


def _digest(body: dict[str, Any], meaning: Sequence[str]) -> str:
    # Two encodings end to end could be cut in another place; an array of both cannot.
    encoded = msgspec.json.encode([meaning, body], order="deterministic")
    return blake2b(encoded, digest_size=32).hexdigest()
