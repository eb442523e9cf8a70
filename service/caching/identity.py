"""What makes two requests the same: a hash of everything that is not known to be neutral.

A field the gateway does not know is meaning. So are case and white space in
a text; white space and key order of the JSON are not, nor is which of two ways
a request has to say one thing (docs/dialects.md, "The canonical request").
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from service.caching.context import keeps_history, plain_turns, systems_first
from service.caching.passages import LONGEST, Layout, Template, cut, cut_parts
from service.context import Keeping

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
# Who speaks in a message that holds the result of a tool.
_RESULTS = frozenset({"tool", "function"})
# Lists that SDKs send back empty in a message they were given.
_EMPTY: tuple[object, ...] = (None, [])


class Question(NamedTuple):
    """A request cut in two: the text that is compared, and the namespace of all that must be equal.

    `layout` is where in its turn the question was found, `history` what became of
    the turns before it: both for the log.
    """

    text: str
    namespace: str
    layout: Layout = "whole"
    history: Literal["none", "full", "dropped", "parents"] = "none"


def exact_key(body: dict[str, Any], meaning: Sequence[str]) -> str:
    """64 hex digits over the body and `meaning`: operation, route, headers and rules that change an answer."""
    return _digest(_normal(body), meaning)


def asked(
    body: dict[str, Any],
    meaning: Sequence[str],
    *,
    keeping: Keeping = "full",
    template: Template | None = None,
    parents: Sequence[str] = (),
) -> Question | str:
    """The question of the last user turn as the text to compare; all else as its namespace. A word for `Cache-Status`
    where there is no such question.

    All else is every field that is not neutral, the passages and instructions
    around the question, and the turns before the last one, except those that
    `keeping` lets go. Where they stay, `parents` stand for them if there are
    any: what `parent` says of the entry that answered the turn before (that of
    the request in `before`, or of which it is an alias). Two conversations whose
    turns were each found equal, and answered with the same text, are then one.
    """
    rest = _normal(body)
    messages = rest["messages"]
    last = messages[-1]
    if last.get("role") != "user":
        return "tools" if last.get("role") in _RESULTS else "not-text"
    found = _cut(last.get("content"), template)
    if isinstance(found, str):
        return found
    text, content, layout = found
    earlier = messages[:-1]
    systems = earlier[: systems_first(earlier)]
    history: Literal["none", "full", "dropped", "parents"] = "none" if len(systems) == len(earlier) else "full"
    if history == "full" and not keeps_history(messages, text, keeping):
        history, earlier = "dropped", systems
    elif history == "full" and parents and plain_turns(messages) is not None:
        history, earlier = "parents", [*systems, {"parents": list(parents)}]
    rest["messages"] = [*earlier, {**last, "content": content}]
    # "Dropped" is no namespace of its own: a turn that stands alone is a first turn.
    marks = ("question", "parents") if history == "parents" else ("question",)
    return Question(text, _digest(rest, (*meaning, *marks)), layout, history)


def before(body: dict[str, Any], meaning: Sequence[str]) -> tuple[str, str] | None:
    """The `exact_key` of the request that the turn before this one answered, and the answer. None for a first turn, and
    where a turn is more than text."""
    messages = [_normal_message(message) for message in body["messages"]]
    turns = plain_turns(messages)
    if not turns or len(turns) < 2 or turns[-1][0] != "assistant" or turns[-2][0] != "user":
        return None
    return exact_key({**body, "messages": body["messages"][:-2]}, meaning), turns[-1][1]


def parent(entry_id: str, answer: str) -> str:
    """What an answered turn is to the turns after it: the entry that answered, and the text it had then."""
    return _digest({"answer": answer}, (entry_id, "parent"))


def _cut(content: object, template: Template | None) -> tuple[str, object, Layout] | str:
    """The question in a user's content, the content without it, and the layout; or why there is none."""
    if isinstance(content, str):
        if len(content) > LONGEST:
            return "too-long"
        found = cut(content, template)
        if found is None:
            return "rag-unclear"
        return found.question, ["text", found.around] if found.around else "text", found.layout
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return "not-text"
    at = _asking(content)
    if isinstance(at, str):
        return at
    part = content[at]
    if len(part["text"]) > LONGEST:
        return "too-long"
    several = sum(other.get("type") == "text" for other in content) > 1
    found = cut(part["text"], template)
    if found is None:
        return "rag-unclear"
    # What else the part carries is meaning, and so is every other part.
    left = [*content[:at], {**part, "text": found.around}, *content[at + 1 :]]
    return found.question, left, "parts" if several and found.layout == "whole" else found.layout


def _asking(content: list[dict[str, Any]]) -> int | str:
    """Which part of a content is its question."""
    texts = [at for at, part in enumerate(content) if part.get("type") == "text"]
    if not texts or not all(isinstance(content[at].get("text"), str) for at in texts):
        return "not-text"
    if len(texts) > 1 and sum(len(content[at]["text"]) for at in texts) > LONGEST:
        return "too-long"
    if len(texts) == 1:
        return texts[0]
    at = cut_parts([content[at]["text"] for at in texts])
    return "rag-unclear" if at is None else texts[at]


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
