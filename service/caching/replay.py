"""A whole completion as the chunks of a stream.

The inverse of `assembly`: replayed and put together again, a completion is
what it was.
https://platform.openai.com/docs/api-reference/chat-streaming
"""

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from models.completion import Completion
from models.request import Operation

# White space travels with the word after it, as tokens do. Long runs without any are cut.
# The ids under which OpenAI keeps what Responses asked and answered.
_KEPT_THERE = b'"resp_'
_PIECE = re.compile(r"\s*\S{1,24}|\s+\Z")
# Fields of a message that stream: as pieces of a text, or item by item.
_TEXTS = ("reasoning_content", "reasoning", "content", "refusal")
_LISTS = ("reasoning_details", "tool_calls", "provider_content")
# Those whose order is known, in the order that goes without saying.
LAID_OUT = ("reasoning_details", "content", "tool_calls", "provider_content")


def chunks(completion: dict[str, Any], operation: Operation, *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Chat: role first, content in token-like pieces, the finish reason, usage when asked for."""
    chat = operation == "chat"
    frame = {name: value for name, value in completion.items() if name not in ("choices", "usage", "object")}
    frame["object"] = "chat.completion.chunk" if chat else "text_completion"
    # With include_usage every chunk has the field, null in all but the last (the API's own rule).
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    parts = _chat_parts if chat else _text_parts
    for choice in completion.get("choices", ()):
        index = choice.get("index", 0)
        for part in parts(choice):
            yield {**frame, "choices": [{"index": index, **part}], **usage}
    if include_usage:
        yield {**frame, "choices": [], "usage": completion.get("usage")}


def _chat_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message = dict(choice.get("message") or {})
    said = {name: message.pop(name) for name in _TEXTS if isinstance(message.get(name), str)}
    said |= {name: message.pop(name) for name in _LISTS if message.get(name) and isinstance(message[name], list)}
    layout = message.pop("layout", None)
    # An SDK that adds up deltas starts from an empty text; null stays null where there is none.
    opening = {"role": "assistant", **message, **({"content": ""} if "content" not in message else {})}
    yield {"delta": opening, "logprobs": None, "finish_reason": None}
    logprobs = choice.get("logprobs")
    for delta in _deltas(said, layout):
        yield {"delta": delta, "logprobs": logprobs, "finish_reason": None}
        logprobs = None
    closing = {name: value for name, value in choice.items() if name not in ("index", "message", "logprobs")}
    yield {"delta": {}, "logprobs": logprobs, **closing}


def adds_up(layout: Any, message: dict[str, Any]) -> bool:
    """Whether `layout` (docs/dialects.md) tells the order of all that `message` says."""
    if not isinstance(layout, list):
        return False
    counts = dict.fromkeys(LAID_OUT, 0)
    for run in layout:
        match run:
            case [str(name), int(count)] if name in counts and count >= 0:
                counts[name] += count
            case _:
                return False
    return all(count == len(message.get(name) or ()) for name, count in counts.items())


def _deltas(said: dict[str, Any], layout: Any) -> Iterator[dict[str, Any]]:
    """Everything in the order of `layout`; without one that adds up reasoning, text, tool calls and other blocks."""
    texts = mirrored(said) if "reasoning_details" in said else None
    if texts is None:
        yield from _pieces_of(said, "reasoning_content")
    yield from _pieces_of(said, "reasoning")
    if not adds_up(layout, said):
        layout = [(name, len(said[name])) for name in LAID_OUT if name in said]
    done = dict.fromkeys(said, 0)
    for name, count in layout:
        begin = done.get(name, 0)
        done[name] = begin + count
        run = said.get(name, ())[begin : begin + count]
        if isinstance(run, str):
            # An empty text is said as well: added up again, the field is there.
            yield from ({name: piece} for piece in _pieces(run) or ([""] if not said[name] else []))
        elif name == "tool_calls":
            yield from ({name: [{"index": index, **call}]} for index, call in enumerate(run, begin))
        elif texts is not None and name == "reasoning_details":
            for detail, text in zip(run, texts[begin:], strict=False):
                yield {"reasoning_content": text, name: [detail]} if text is not None else {name: [detail]}
        else:
            yield from ({name: [item]} for item in run)
    yield from _pieces_of(said, "refusal")


def mirrored(said: dict[str, Any]) -> list[str | None]:
    """The part of `reasoning_content` that travels beside each of the details, which hold it too.

    Where it does not consist of what is readable in them, all of it goes with the first.
    """
    readable = [
        detail.get("text") or detail.get("summary") if isinstance(detail, dict) else None
        for detail in said["reasoning_details"]
    ]
    content = said.get("reasoning_content")
    if content is None or content != "".join(text for text in readable if isinstance(text, str)):
        return [content, *(None for _ in readable[1:])]
    return readable


def _pieces_of(said: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if name in said:
        yield from ({name: piece} for piece in _pieces(said[name]) or [""])


def _text_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    closing = {name: value for name, value in choice.items() if name not in ("index", "text", "logprobs")}
    logprobs = choice.get("logprobs")
    for piece in _pieces(choice.get("text") or ""):
        yield {"text": piece, "logprobs": logprobs, "finish_reason": None}
        logprobs = None
    yield {"text": "", "logprobs": logprobs, **closing}


def _pieces(text: str) -> list[str]:
    return _PIECE.findall(text)


def unlinked(completion: Completion) -> Completion:
    """Without the ids under which a provider keeps the request that this answers: they open what another asked.

    Answers without such ids, which are most, cost one search.
    """
    if _KEPT_THERE not in completion.body:
        return completion
    whole: dict[str, Any] = msgspec.json.decode(completion.body)
    own = blake2b(str(whole.get("id")).encode(), digest_size=12).hexdigest()
    whole["id"] = f"chatcmpl-kg-{own}"
    for choice in whole.get("choices", ()):
        message = choice.get("message") or {}
        for name in ("reasoning_details", "content_items"):
            items = message.get(name)
            if isinstance(items, list):
                message[name] = [{key: value for key, value in item.items() if key != "id"} for item in items]
        for call in message.get("tool_calls") or ():
            call.pop("item_id", None)
    return msgspec.structs.replace(completion, body=msgspec.json.encode(whole))
